"""HTTP: where Baseten and the local server are, with which key, and what their answers mean as errors.

The key is read from BASETEN_API_KEY and goes into a header, never into an address, a log or an error.
"""

import dataclasses
import functools
import ipaddress
import os
import re
import ssl
import time
from collections.abc import Iterator
from typing import Any

import httpx
from baseten.client import InferenceClient, ManagementClient, inferenceapi, managementapi

from fast_truss.errors import ClientError, ConnectionLost, InvalidInput, UnexpectedAnswer, Unreachable, of_answer
from fast_truss.target import Target

CONNECT_SECONDS = 10.0
EVENTS = "text/event-stream"


@dataclasses.dataclass(frozen=True)
class Route:
    """Addresses without a slash at the end. local: of a local server, in place of Baseten."""

    inference: str
    management: str
    local: str | None
    key: str = dataclasses.field(repr=False, default="")


def route_to(target: Target, url: str | None) -> Route:
    """Return the addresses of a target, or of the local server at url. Raises InvalidInput."""
    regional = target.name if target.kind == "regional" else None
    inference = InferenceClient.default_base_url(model_id=target.model_id, environment=regional)
    # For tests and for proxies of one's own.
    if override := os.environ.get("BASETEN_INFERENCE_URL"):
        host = f"{target.model_id}-{regional}" if regional else target.model_id
        inference = override.replace("{model_id}", host).rstrip("/")
    management = os.environ.get("BASETEN_MANAGEMENT_URL", ManagementClient.default_base_url()).rstrip("/")
    local = local_address(url) if url is not None else None
    return Route(inference, management, local, "" if local else _key())


def local_address(url: str) -> str:
    """Return url with its scheme and without a slash at the end. Raises InvalidInput."""
    address = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        parsed = httpx.URL(address)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not re.fullmatch(r"[\w.:-]+", parsed.host):
        raise InvalidInput(f"--url is {url!r}: use the address of a server, such as http://127.0.0.1:8000.")
    return address


def options(route: Route, hook: Any) -> dict[str, Any]:
    """Return what both kinds of httpx clients are made with. hook: is given each answer first."""
    headers = {"Authorization": f"Api-Key {route.key}"} if route.key else {}
    hosts = {httpx.URL(address).host for address in (route.inference, route.management, route.local or "")}
    # None: no proxy, whatever HTTP_PROXY and NO_PROXY say.
    direct = {f"all://{_in_url(host)}": None for host in hosts if _is_local(host)}
    return {"headers": headers, "mounts": direct, "event_hooks": {"response": [hook]}, "verify": _tls()}


def made(kind: Any, settings: dict[str, Any]) -> Any:
    """Return an httpx.Client or httpx.AsyncClient, which reads the proxies of the environment. Raises InvalidInput."""
    try:
        return kind(**settings)
    # A proxy of SOCKS without its package, one of no known kind, or no address.
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise InvalidInput(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used: {error}") from None


class _InTime(httpx.SyncByteStream):
    """The body of an answer, which must be whole in time. httpx's own limit is one for each part of it.

    AsyncClient has no need of it: asyncio ends the whole call.
    """

    def __init__(self, response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.SyncByteStream)  # of httpx.Client
        self._body, self._request = response.stream, response.request
        self._end = time.monotonic() + response.request.extensions["timeout"]["read"]

    def __iter__(self) -> Iterator[bytes]:
        for part in self._body:
            if time.monotonic() > self._end:
                raise httpx.ReadTimeout("the answer is too slow", request=self._request)
            yield part

    def close(self) -> None:
        self._body.close()


def raise_for_error(response: httpx.Response) -> None:
    """Raise what an answer of 300 or above means. With this hook the SDK sees none of them."""
    response.stream = _InTime(response)
    if response.status_code >= 300:
        response.read()
        raise of_answer(response.status_code, response.headers, response.content)


async def raise_for_error_async(response: httpx.Response) -> None:
    """The same for httpx.AsyncClient."""
    if response.status_code >= 300:
        await response.aread()
        raise of_answer(response.status_code, response.headers, response.content)


class Reach:
    """What one call can reach: the SDK's two APIs and the local server, each with the call's own time limit.

    http: an httpx.Client or httpx.AsyncClient. Of the second, each method returns an awaitable.
    """

    def __init__(self, http: httpx.Client | httpx.AsyncClient, route: Route, seconds: float) -> None:
        self._http = http
        self._route = route
        self._timeout = httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))

    @property
    def inference(self) -> Any:
        if isinstance(self._http, httpx.AsyncClient):
            return inferenceapi.AsyncApiClient(self._http, base_url=self._route.inference, timeout=self._timeout)
        return inferenceapi.ApiClient(self._http, base_url=self._route.inference, timeout=self._timeout)

    @property
    def management(self) -> Any:
        if isinstance(self._http, httpx.AsyncClient):
            return managementapi.AsyncApiClient(self._http, base_url=self._route.management, timeout=self._timeout)
        return managementapi.ApiClient(self._http, base_url=self._route.management, timeout=self._timeout)

    def local(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the httpx.Response of the local server."""
        return self._http.request(method, f"{self._route.local}{path}", json=body, timeout=self._timeout)

    def opened(self, target: Target, local: bool, path: str, body: dict[str, Any]) -> Any:
        """Return the httpx.Response of a predict, with its body still to come. path: of the local server."""
        if not local:
            asked = inferenceapi.PredictInput(body)
            return target.call(self.inference, "predict", "_raw", request=asked, accept=EVENTS)
        address, headers = f"{self._route.local}{path}", {"Accept": EVENTS}
        request = self._http.build_request("POST", address, json=body, headers=headers, timeout=self._timeout)
        return self._http.send(request, stream=True)


def as_client_error(error: Exception, key: str) -> ClientError:
    """Return what an exception of httpx or of the SDK means. key: never shown. Raises what is neither."""
    if isinstance(error, ClientError):
        if key and key in str(error):
            error.args = (str(error).replace(key, "[key]"),)
        return error
    if isinstance(error, httpx.HTTPError):
        return _network_error(error)
    if isinstance(error, TimeoutError):  # of asyncio
        return ConnectionLost("There was no whole answer in time: try again.")
    if isinstance(error, inferenceapi.ResponseError | managementapi.ResponseError):
        # What is 300 or above never gets so far.
        sentence = f"The answer is {error.status_code}, which is not what Baseten's SDK knows here: check the address."
        return UnexpectedAnswer(sentence, error.status_code)
    # pydantic's ValidationError is one: an answer that does not fit the SDK's models.
    if isinstance(error, ValueError):
        return UnexpectedAnswer(f"The answer is not whole, or not what Baseten's SDK knows{_fields(error)}: try again.")
    raise error


def _network_error(error: httpx.HTTPError) -> ClientError:
    try:
        host = error.request.url.host
    except RuntimeError:  # no request was made
        host = "The server"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError | httpx.PoolTimeout):
        return Unreachable(f"{host} cannot be reached: check the network and the address.")
    if isinstance(error, httpx.TimeoutException):
        return ConnectionLost(f"{host} did not answer in time: try again.")
    return ConnectionLost(f"The connection to {host} broke in the middle of the answer: try again.")


def _fields(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return ""
    names = {".".join(map(str, each["loc"])) for each in errors(include_url=False, include_input=False)} - {""}
    return f" ({', '.join(sorted(names)[:5])})" if names else ""


def _key() -> str:
    key = os.environ.get("BASETEN_API_KEY", "")
    if not key:
        raise InvalidInput("BASETEN_API_KEY is not set: put a key of your Baseten workspace there.")
    if not re.fullmatch(r"[!-~]+", key):
        raise InvalidInput("BASETEN_API_KEY is not a key: it holds blanks or other characters that no key has.")
    return key


@functools.cache
def _tls() -> ssl.SSLContext:
    # Made once: it reads all certificates, and that takes longer than many a request.
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise InvalidInput(f"SSL_CERT_FILE or SSL_CERT_DIR names no certificates: {error.strerror}.") from None


def _is_local(host: str) -> bool:
    if host == "localhost" or host.endswith((".localhost", ".local")):
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host

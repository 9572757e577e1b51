"""HTTP: addresses of Baseten and the local server, the key, and errors for their answers.

The key comes from BASETEN_API_KEY and goes into a header, never into a URL, a log or an error.
"""

import contextlib
import contextvars
import dataclasses
import functools
import ipaddress
import os
import re
import socket
import ssl
import types
import typing
from typing import Any

import httpx
from baseten.client import InferenceClient, ManagementClient, managementapi
from pydantic import BaseModel, HttpUrl, TypeAdapter, ValidationError

from fast_truss import errors
from fast_truss.deployment import Target
from fast_truss.errors import ClientError, ConnectionLost, InvalidInput, UnexpectedAnswer, Unreachable

CONNECT_SECONDS = 5.0
OBJECT = TypeAdapter(dict[str, Any])
MISSING = object()
# Cached: reading the certificates takes longer than a short request.
_tls = functools.cache(httpx.create_ssl_context)
# Likely causes of a failed connection.
LIKELY: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "the host name cannot be resolved. Check the network and the address"),
    (ConnectionRefusedError, "nothing listens there. Check that the server runs, and its port"),
    (ssl.SSLError, "TLS failed. Check https or http, and the certificates that a proxy may need (SSL_CERT_FILE)"),
    (httpx.ConnectTimeout, "it does not answer. Check the network, firewall and proxy"),
    (httpx.ProxyError, "the proxy refused. Check HTTP_PROXY or HTTPS_PROXY, and its login"),
)


@dataclasses.dataclass(frozen=True)
class Route:
    """Base URLs without a trailing slash. server: the deployment on Baseten, or the local server."""

    server: str
    management: str
    key: str = dataclasses.field(repr=False, default="")


def route_to(target: Target, url: str | None) -> Route:
    """Return the base URLs of a target, or of the local server at url. Raises InvalidInput."""
    if url is not None:
        try:
            return Route(str(HttpUrl(url if "://" in url else f"http://{url}")).rstrip("/"), "")
        except ValueError:
            wanted = "use the address of a server, such as http://127.0.0.1:8000"
            raise InvalidInput(f"--url is {url!r}: {wanted}.") from None
    regional = target.name if target.kind == "regional" else None
    server = InferenceClient.default_base_url(model_id=target.model_id, environment=regional)
    # For tests and custom proxies.
    if override := os.environ.get("BASETEN_INFERENCE_URL"):
        host = f"{target.model_id}-{regional}" if regional else target.model_id
        server = override.replace("{model_id}", host).rstrip("/")
    management = (os.environ.get("BASETEN_MANAGEMENT_URL") or ManagementClient.default_base_url()).rstrip("/")
    return Route(server, management, _key())


# The task's last answer, needed if it does not fit the SDK's models.
_answer: contextvars.ContextVar[httpx.Response | None] = contextvars.ContextVar("_answer", default=None)


async def raise_for_error(response: httpx.Response) -> None:
    """Raise the error for an answer with status 300 or above, before the SDK sees it."""
    _answer.set(None)
    if response.status_code >= 300:
        await response.aread()
        # Only requests to a local server carry no key.
        if response.status_code in (401, 403, 404) and "Authorization" not in response.request.headers:
            where = f"{response.url.scheme}://{response.url.netloc.decode()}"
            raise errors.NotFound(f"{where} is not a model server ({response.status_code}): check the port.")
        raise errors.of_answer(response.status_code, response.headers, response.content)
    _answer.set(response)


class Reach:
    """The server and the SDK's management API, on one httpx client, `http`, which the caller closes."""

    def __init__(self, route: Route, transport: httpx.AsyncBaseTransport | None) -> None:
        """transport: replaces the network and its proxies. Raises InvalidInput for a wrong environment variable."""
        try:
            self.http = httpx.AsyncClient(
                base_url=route.server,
                headers={"Authorization": f"Api-Key {route.key}"} if route.key else {},
                transport=transport,
                # A local server needs no proxy, whatever HTTP_PROXY and NO_PROXY say.
                trust_env=not _is_local(httpx.URL(route.server).host),
                event_hooks={"response": [raise_for_error]},
                verify=_tls(),
                # The caller limits the whole request.
                timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            )
        except OSError as error:
            raise InvalidInput(f"SSL_CERT_FILE or SSL_CERT_DIR names no certificates: {error.strerror}.") from None
        # A SOCKS proxy without its package, an unknown scheme, or an invalid URL.
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise InvalidInput(f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is invalid: {error}") from None
        self.management = managementapi.AsyncApiClient(self.http, base_url=route.management)

    async def send(
        self, method: str, path: str, body: Any = None, expected: tuple[int, ...] = (200,), stream: bool = False
    ) -> httpx.Response:
        """Return the answer, still open if it is an event stream."""
        headers = {"Accept": "text/event-stream"} if stream else {}
        request = self.http.build_request(method, path, json=body, headers=headers)
        response = await self.http.send(request, stream=stream)
        if response.status_code not in expected:
            await response.aclose()
            raise managementapi.ResponseError(response.status_code, "")
        return response

    async def json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Send a request and return the JSON object in the answer."""
        return OBJECT.validate_json((await self.send(method, path, body)).content)


def fitting(error: Exception, key: str) -> Any:
    """Return the parts that fit of an answer that the SDK rejected with error. Raises ClientError if there is none.

    key: masked in the error.
    """
    response, kind = _answer.get(), getattr(managementapi, getattr(error, "title", ""), None)
    with contextlib.suppress(ValueError, RecursionError):
        found = lenient(kind, response.json()) if response and kind else MISSING
        if found is not MISSING:
            return found
    raise as_client_error(error, key) from None


class FieldMissing(UnexpectedAnswer, AttributeError):
    """The answer lacks a required field."""


def lenient(kind: Any, value: Any) -> Any:
    """Return the JSON value as kind, or MISSING. Reading a field that did not fit raises FieldMissing.

    The SDK's models require fields that are deprecated, and those may disappear at any time.
    """
    with contextlib.suppress(ValidationError):
        return TypeAdapter(kind).validate_python(value)
    arguments, origin = typing.get_args(kind), typing.get_origin(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, dict):
        fields = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
        found = {key: lenient(annotation, value[key]) for key, annotation in fields.items() if key in value}
        return _class(kind).model_construct(**{key: each for key, each in found.items() if each is not MISSING})
    if origin is list and isinstance(value, list):
        return [each for each in (lenient(arguments[0], each) for each in value) if each is not MISSING]
    if origin in (typing.Union, types.UnionType):
        return next((each for each in (lenient(each, value) for each in arguments) if each is not MISSING), MISSING)
    return MISSING


@functools.cache
def _class(kind: type[BaseModel]) -> type[BaseModel]:
    def __getattr__(self: BaseModel, name: str) -> Any:
        if name in kind.model_fields:
            raise FieldMissing(f"Baseten's answer lacks `{name}` of {kind.__name__}: update fast-truss.")
        raise AttributeError(name)

    return type(kind.__name__, (kind,), {"__getattr__": __getattr__, "__module__": kind.__module__})


def as_client_error(error: Exception, key: str) -> ClientError:
    """Return the ClientError for an exception of httpx or the SDK. Raises any other again."""
    if isinstance(error, ClientError):
        if key and key in str(error):
            error.args = (str(error).replace(key, "[key]"),)
        return error
    if isinstance(error, httpx.HTTPError):
        return _network_error(error)
    if isinstance(error, TimeoutError):  # from asyncio.timeout
        return ConnectionLost("The server did not answer in time: try again.")
    if isinstance(error, managementapi.ResponseError):
        # Statuses of 300 and above were raised by raise_for_error.
        sentence = f"The answer has the unexpected status {error.status_code}: check the address."
        return UnexpectedAnswer(sentence, error.status_code)
    # Includes pydantic's ValidationError: the answer does not fit the SDK's models.
    if isinstance(error, ValueError):
        return UnexpectedAnswer("The answer is incomplete or not from Baseten: try again.")
    raise error


def _network_error(error: httpx.HTTPError) -> ClientError:
    url = error.request.url
    where = f"{url.scheme}://{url.netloc.decode()}"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError | httpx.UnsupportedProtocol):
        return Unreachable(f"{where} cannot be reached: {_likely(error)}.")
    if isinstance(error, httpx.TimeoutException):
        return ConnectionLost(f"{where} did not answer in time: try again.")
    return ConnectionLost(f"The connection to {where} broke during the answer: try again.")


def _likely(error: BaseException | None) -> str:
    """Return the likely cause of a failed connection."""
    while error is not None:
        for kind, words in LIKELY:
            if isinstance(error, kind):
                return words
        error = error.__cause__ or error.__context__
    return "check the address"


def _key() -> str:
    key = os.environ.get("BASETEN_API_KEY", "")
    if not re.fullmatch(r"[!-~]+", key):
        found = "contains spaces or other characters that no key has" if key else "is not set"
        raise InvalidInput(f"BASETEN_API_KEY {found}: use an API key of your Baseten workspace.")
    return key


def _is_local(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_private
    return host == "localhost" or host.endswith((".localhost", ".local"))

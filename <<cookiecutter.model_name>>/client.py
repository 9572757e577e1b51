"""Wake, watch and call this model on Baseten. `python cli.py --help` shows the command line.

The key is read from BASETEN_API_KEY and goes into a header, never into a URL, a log or an error.
Each rule is written once, as a generator that yields what to send and how long to wait. Client and
AsyncClient only carry that out.
"""

import asyncio
import base64
import dataclasses
import email.utils
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import httpx

INFERENCE_URL = "https://model-{model_id}.api.baseten.co"
MANAGEMENT_URL = "https://api.baseten.co"
# Baseten lets a synchronous request live for 1200 s.
REQUEST_SECONDS = 1200.0
# How long to wait before another try, if the answer does not say: Baseten's documents ask for 30 to
# 60 s after a 500, which is what a request gets that was parked for too long.
RETRY_SECONDS = {429: 5.0, 500: 30.0, 502: 30.0, 503: 30.0, 504: 30.0}
POLL_SECONDS = 1.0
NAME = re.compile(r"[A-Za-z0-9_-]+")
READY = "ACTIVE"
FAILED = {"FAILED", "BUILD_FAILED", "BUILD_STOPPED", "DEPLOY_FAILED", "DEACTIVATED", "INACTIVE", "UNHEALTHY"}
AUTOSCALING = {
    "min_replica": (0, 1000),
    "max_replica": (1, 1000),
    "autoscaling_window": (10, 3600),
    "scale_down_delay": (0, 3600),
    "concurrency_target": (1, 1000),
    "target_utilization_percentage": (1, 100),
}


class ClientError(Exception):
    """What went wrong, in one sentence for a person."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Which deployment of a model. kind: environment, deployment or development; name: of the first two."""

    model_id: str
    kind: str = "environment"
    name: str = "production"

    def __post_init__(self) -> None:
        for field in ("model_id", "name"):
            if not NAME.fullmatch(getattr(self, field)):
                raise ClientError(f"{field} is {getattr(self, field)!r}: use letters, digits, '_' and '-' only.")

    def inference_path(self, action: str) -> str:
        """Return the path on the inference host. action: wake or predict."""
        if self.kind == "development":
            return f"/development/{action}"
        if self.kind == "deployment":
            return f"/deployment/{self.name}/{action}"
        return f"/production/{action}" if self.name == "production" else f"/environments/{self.name}/{action}"

    def management_path(self) -> str:
        """Return the path on the management host: of an environment, or of one deployment."""
        if self.kind == "environment":
            return f"/v1/models/{self.model_id}/environments/{self.name}"
        name = "development" if self.kind == "development" else self.name
        return f"/v1/models/{self.model_id}/deployments/{name}"


@dataclasses.dataclass(frozen=True)
class Status:
    """status: Baseten's own word, such as SCALED_TO_ZERO, WAKING_UP, LOADING_MODEL or ACTIVE."""

    status: str
    replicas: int
    deployment_id: str
    autoscaling: dict[str, int]

    @property
    def ready(self) -> bool:
        """True when a replica can answer at once."""
        return self.status == READY and self.replicas >= 1


@dataclasses.dataclass(frozen=True)
class Call:
    """An HTTP request that a rule asks for. retried: the codes that the rule deals with itself."""

    method: str
    url: str
    body: dict[str, Any] | None = None
    retried: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Wait:
    """A pause that a rule asks for."""

    seconds: float


Steps = Generator[Call | Wait, Any, Any]


class _Rules:
    """What both clients share: the settings, and every rule as a generator of calls and waits."""

    def __init__(
        self,
        target: Target,
        *,
        url: str | None = None,
        timeout: float = REQUEST_SECONDS,
        transport: Any = None,
    ) -> None:
        """url: of a local server, which is always awake. timeout: seconds for one request."""
        self._target = target
        self._local = url.rstrip("/") if url else None
        inference = os.environ.get("BASETEN_INFERENCE_URL", INFERENCE_URL)
        self._inference = inference.replace("{model_id}", target.model_id).rstrip("/")
        self._management = os.environ.get("BASETEN_MANAGEMENT_URL", MANAGEMENT_URL).rstrip("/")
        self._options = {"headers": {} if url else _headers(), "timeout": timeout, "transport": transport}

    def _wake(self) -> Steps:
        if self._local:
            return
        yield Call("POST", self._inference + self._target.inference_path("wake"))

    def _status(self) -> Steps:
        if self._local:
            response = yield Call("GET", f"{self._local}/v1/models/model/loaded", None, frozenset(RETRY_SECONDS))
            return Status(READY if response.status_code == 200 else "LOADING_MODEL", 1, "local", {})
        response = yield Call("GET", self._management + self._target.management_path())
        answer = _json(response)
        deployment = answer.get("current_deployment") if self._target.kind == "environment" else answer
        if not isinstance(deployment, dict) or "status" not in deployment:
            raise ClientError(f"{self._target.name} has no deployment yet: push the model first.")
        return Status(
            status=deployment["status"],
            replicas=deployment.get("active_replica_count", 0),
            deployment_id=deployment.get("id", ""),
            autoscaling=deployment.get("autoscaling_settings") or {},
        )

    def _watch(self, timeout: float, until: Callable[[Status], bool]) -> Generator[Call | Wait | Status, Any, None]:
        """Yield each new status until it is the one; then end."""
        deadline = time.monotonic() + timeout
        seen = None
        while True:
            status = yield from self._status()
            if status != seen:
                yield status
                seen = status
            if until(status):
                return
            if status.status in FAILED:
                raise ClientError(f"The deployment is {status.status}: its log on Baseten says why.")
            if time.monotonic() >= deadline:
                raise ClientError(f"The model is still {status.status} after {timeout:.0f} s: gave up waiting.")
            yield Wait(POLL_SECONDS)

    def _generate(self, request: dict[str, Any], timeout: float) -> Steps:
        url = self._inference + self._target.inference_path("predict")
        if self._local:
            url = f"{self._local}/v1/models/model:predict"
        deadline = time.monotonic() + timeout
        while True:
            response = yield Call("POST", url, request, frozenset(RETRY_SECONDS))
            if response.status_code not in RETRY_SECONDS:
                return _json(response)
            pause = _retry_after(response)
            if time.monotonic() + pause > deadline:
                raise ClientError(
                    f"The model did not answer within {timeout:.0f} s. The last answer was {_reason(response)}"
                )
            yield Wait(pause)

    def _autoscaling(self, changes: dict[str, int]) -> Steps:
        check_autoscaling(changes)
        status = yield from self._status()
        if not changes:
            return status.autoscaling
        path = f"/v1/models/{self._target.model_id}/deployments/{status.deployment_id}/autoscaling_settings"
        yield Call("PATCH", self._management + path, changes)
        return {**status.autoscaling, **changes}


class Client(_Rules):
    """Calls Baseten and waits. Every method raises ClientError with one sentence."""

    def wake(self) -> None:
        """Start a replica. Returns at once: see wait_until_ready()."""
        self._run(self._wake())

    def status(self) -> Status:
        """Return what Baseten says now, without waiting."""
        return self._run(self._status())

    def watch(self, timeout: float = 1800, until: Callable[[Status], bool] = lambda s: s.ready) -> Iterator[Status]:
        """Yield each new status until one is as asked, for at most timeout seconds."""
        yield from self._carry_out(self._watch(timeout, until))

    def wait_until_ready(self, timeout: float = 1800) -> Status:
        """Return when a replica can answer, after at most timeout seconds. It wakes nothing: see wake()."""
        return list(self.watch(timeout))[-1]

    def generate(self, prompt: str, timeout: float = 1800, **request: Any) -> dict[str, Any]:
        """Return the model's answer: see GenerationResponse in model/request.py. request: its other fields.

        Goes through a cold start: it tries again, for at most timeout seconds.
        """
        return self._run(self._generate({"prompt": prompt, **request}, timeout))

    def autoscaling(self, **changes: int) -> dict[str, int]:
        """Return the autoscaling settings, after the changes if there are any. AUTOSCALING: names and bounds."""
        return self._run(self._autoscaling(changes))

    def _run(self, steps: Steps) -> Any:
        carried_out = self._carry_out(steps)
        while True:
            try:
                next(carried_out)
            except StopIteration as stop:
                return stop.value

    def _carry_out(self, steps: Steps) -> Steps:
        answer = None
        with httpx.Client(**self._options) as http:
            while True:
                try:
                    step = steps.send(answer)
                except StopIteration as stop:
                    return stop.value
                answer = None
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                elif isinstance(step, Call):
                    try:
                        answer = _checked(http.request(step.method, step.url, json=step.body), step.retried)
                    except httpx.HTTPError as error:
                        raise _network_error(error, step.url) from None
                else:
                    yield step


class AsyncClient(_Rules):
    """The same as Client, method by method, for asyncio."""

    async def wake(self) -> None:
        await self._run(self._wake())

    async def status(self) -> Status:
        return await self._run(self._status())

    async def watch(
        self, timeout: float = 1800, until: Callable[[Status], bool] = lambda s: s.ready
    ) -> AsyncIterator[Status]:
        async for status in self._carry_out(self._watch(timeout, until), []):
            yield status

    async def wait_until_ready(self, timeout: float = 1800) -> Status:
        return [status async for status in self.watch(timeout)][-1]

    async def generate(self, prompt: str, timeout: float = 1800, **request: Any) -> dict[str, Any]:
        return await self._run(self._generate({"prompt": prompt, **request}, timeout))

    async def autoscaling(self, **changes: int) -> dict[str, int]:
        return await self._run(self._autoscaling(changes))

    async def _run(self, steps: Steps) -> Any:
        result: list[Any] = []
        async for _ in self._carry_out(steps, result):
            pass
        return result[0]

    async def _carry_out(self, steps: Steps, result: list[Any]) -> AsyncIterator[Any]:
        answer = None
        async with httpx.AsyncClient(**self._options) as http:
            while True:
                try:
                    step = steps.send(answer)
                except StopIteration as stop:
                    result.append(stop.value)
                    return
                answer = None
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                elif isinstance(step, Call):
                    try:
                        answer = _checked(await http.request(step.method, step.url, json=step.body), step.retried)
                    except httpx.HTTPError as error:
                        raise _network_error(error, step.url) from None
                else:
                    yield step


def check_autoscaling(changes: dict[str, int]) -> None:
    """Raise ClientError for a field that Baseten does not know, or a value out of its bounds."""
    for name, value in changes.items():
        if name not in AUTOSCALING:
            raise ClientError(f"{name} is no autoscaling setting: use {', '.join(AUTOSCALING)}.")
        low, high = AUTOSCALING[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ClientError(f"{name} is {value!r}: use a whole number from {low} to {high}.")


def image_bytes(answer: dict[str, Any]) -> list[bytes]:
    """Return the files that an answer of generate() holds."""
    try:
        return [base64.b64decode(entry["image"], validate=True) for entry in answer["images"]]
    except (KeyError, TypeError, ValueError):
        raise ClientError("The answer holds no image: is this the model of this project?") from None


def _headers() -> dict[str, str]:
    key = os.environ.get("BASETEN_API_KEY", "")
    if not key:
        raise ClientError("BASETEN_API_KEY is not set: put a key of your Baseten workspace there.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ClientError("BASETEN_API_KEY is not a key: it holds blanks or other characters that no key has.")
    return {"Authorization": f"Api-Key {key}"}


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ClientError("The answer is not whole, or no JSON object: try again.")
    return answer


def _checked(response: httpx.Response, retried: frozenset[int]) -> httpx.Response:
    code = response.status_code
    if code < 300 or code in retried:
        return response
    if code in (401, 403):
        raise ClientError(f"Baseten refused the key ({code}): check BASETEN_API_KEY and its workspace.")
    if code == 404:
        raise ClientError("There is no such model or deployment, or it is deactivated (404): check its id on Baseten.")
    raise ClientError(f"The request failed: {_reason(response)}")


def _reason(response: httpx.Response) -> str:
    try:
        answer = response.json()
        text = answer.get("error") or answer.get("detail") or answer.get("message")
    except (ValueError, AttributeError):
        text = None
    return f"{response.status_code}: {str(text or response.reason_phrase)[:500]}"


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds to wait: Retry-After holds them, or an HTTP date. What is neither counts as not said."""
    said = response.headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,6}", said):
        return float(said)
    try:
        pause = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
    except (ValueError, OverflowError):
        return RETRY_SECONDS[response.status_code]
    # A date that has passed: at once, but not in a hurry.
    return max(pause, POLL_SECONDS)


def _network_error(error: httpx.HTTPError, url: str) -> ClientError:
    host = httpx.URL(url).host
    if isinstance(error, httpx.TimeoutException):
        return ClientError(f"{host} did not answer in time: try again.")
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.DecodingError):
        return ClientError(f"The connection to {host} broke in the middle of the answer: try again.")
    return ClientError(f"{host} cannot be reached: check the network and the address.")

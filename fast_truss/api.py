"""The two clients: the same rules, carried out with and without asyncio. Every method raises ClientError."""

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any, Self

from fast_truss import rules
from fast_truss.errors import ClientError, UnexpectedAnswer
from fast_truss.events import Event
from fast_truss.policy import WAIT_SECONDS, Deadline
from fast_truss.rules import Call, Result, Status, Steps, Wait
from fast_truss.target import Target

ASK_SECONDS = 60.0


def is_ready(status: Status) -> bool:
    """Return whether a replica can answer at once."""
    return status.ready


class _Client:
    """What both share. In a `with` block they keep their connections; outside, each call makes its own."""

    def __init__(
        self,
        target: Target,
        *,
        url: str | None = None,
        on_pause: Callable[[Wait], None] | None = None,
        transport: Any = None,
    ) -> None:
        """url: of a local server, in place of Baseten. on_pause: told before each pause that has a reason."""
        # Here, and not above: the SDK takes half a second, which `--help` need not wait for.
        from fast_truss.transport import route_to

        self.target = target
        self.local = url is not None
        self._route = route_to(target, url)
        self._tell = on_pause
        self._transport = transport

    def _options(self, hook: Any) -> dict[str, Any]:
        from fast_truss.transport import options

        found = options(self._route, hook)
        return found if self._transport is None else {**found, "mounts": None, "transport": self._transport}

    def _reach(self, http: Any, seconds: float) -> Any:
        from fast_truss.transport import Reach

        return Reach(http, self._route, seconds)

    def _on_pause(self, wait: Wait) -> None:
        if self._tell and wait.reason:
            self._tell(wait)

    def _error(self, error: Exception) -> ClientError:
        from fast_truss.transport import as_client_error

        return as_client_error(error, self._route.key)


class Client(_Client):
    """Wakes, watches and calls the model."""

    _http: Any = None

    def __enter__(self) -> Self:
        self._http = self._made()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._http = None

    def wake(self, timeout: float = ASK_SECONDS) -> None:
        """Start a replica. Returns at once: see wait_until_ready()."""
        self._run(rules.wake(self.target, self.local, Deadline(timeout)))

    def status(self, timeout: float = ASK_SECONDS) -> Status:
        """Return what Baseten says now."""
        return self._run(rules.status(self.target, self.local, Deadline(timeout)))

    def watch(self, timeout: float = WAIT_SECONDS, until: Callable[[Status], bool] = is_ready) -> Iterator[Status]:
        """Yield each new status until one is as asked, for at most timeout seconds."""
        yield from self._carry_out(rules.watch(self.target, self.local, timeout, until))

    def wait_until_ready(self, timeout: float = WAIT_SECONDS) -> Status:
        """Return when a replica can answer, after at most timeout seconds. It wakes nothing: see wake()."""
        return list(self.watch(timeout))[-1]

    def generate(self, prompt: str, timeout: float = WAIT_SECONDS, **request: Any) -> dict[str, Any]:
        """Return the model's answer: see GenerationResponse in model/request.py. request: its other fields.

        Goes through a cold start: it tries again, for at most timeout seconds.
        """
        body = {"prompt": prompt, **request}
        return self._run(rules.generate(self.target, self.local, body, Deadline(timeout)))

    def events(self, prompt: str, timeout: float = WAIT_SECONDS, **request: Any) -> Iterator[Event]:
        """Yield each Event of a request: its steps, and at last the answer. Closed before, the work on it ends.

        Goes through a cold start like generate(). What broke off after the first event is not asked for again.
        """
        body = {"prompt": prompt, **request}
        yield from self._carry_out(rules.events(self.target, self.local, body, Deadline(timeout)))

    def submit(self, prompt: str, webhook: str, timeout: float = ASK_SECONDS, **request: Any) -> str:
        """Return the id of a request that waits in Baseten's queue. Its answer goes to webhook."""
        body = {"prompt": prompt, **request}
        return self._run(rules.submit(self.target, self.local, body, webhook, Deadline(timeout)))

    def submitted(self, request_id: str, timeout: float = ASK_SECONDS) -> Any:
        """Return the SDK's AsyncRequestStatusResponse of such a request."""
        return self._run(rules.submitted(self.local, request_id, Deadline(timeout)))

    def autoscaling(self, timeout: float = ASK_SECONDS, **changes: int) -> dict[str, int]:
        """Return the autoscaling settings, after the changes if there are any. rules.BOUNDS: names and bounds."""
        return self._run(rules.autoscaling(self.target, self.local, changes, Deadline(timeout)))

    def environment(self, timeout: float = ASK_SECONDS) -> Any:
        """Return the SDK's Environment."""
        return self._run(rules.environment(self.target, self.local, Deadline(timeout)))

    def change_schedules(self, settings: Any, timeout: float = ASK_SECONDS) -> Any:
        """Send the SDK's UpdateAutoscalingScheduleSettings. Returns its Environment."""
        return self._run(rules.change_schedules(self.target, self.local, settings, Deadline(timeout)))

    def startups(self, deployment_id: str, timeout: float = ASK_SECONDS, **window: Any) -> list[Any] | None:
        """Return the newest startups in Baseten's record, as the SDK's StartupAttempt. None: there is no record."""
        return self._run(rules.startups(self.target, self.local, deployment_id, window, Deadline(timeout)))

    def startups_summary(self, timeout: float = ASK_SECONDS, **window: int) -> Any:
        """Return the SDK's StartupSummary. None: there is no record."""
        return self._run(rules.startups_summary(self.target, self.local, window, Deadline(timeout)))

    def ask_management(self, method: str, timeout: float = ASK_SECONDS, **arguments: Any) -> Any:
        """Return what a reading method of the SDK's management API says, such as get_secrets."""
        return self._run(rules.ask_management(self.local, method, Deadline(timeout), **arguments))

    def _made(self) -> Any:
        import httpx

        from fast_truss.transport import made, raise_for_error

        return made(httpx.Client, self._options(raise_for_error))

    def _run(self, steps: Steps[Result]) -> Result:
        carried_out = self._carry_out(steps)
        while True:
            try:
                next(carried_out)
            except StopIteration as stop:
                result: Result = stop.value
                return result

    def _carry_out(self, steps: Steps[Result]) -> Generator[Any, None, Result]:
        answer: Any = None
        failure: ClientError | None = None
        with contextlib.ExitStack() as stack:
            http = self._http or stack.enter_context(self._made())
            while True:
                try:
                    step = steps.throw(failure) if failure else steps.send(answer)
                except StopIteration as stop:
                    result: Result = stop.value
                    return result
                answer, failure = None, None
                if isinstance(step, Wait):
                    self._on_pause(step)
                    time.sleep(step.seconds)
                elif isinstance(step, Call):
                    try:
                        answer = step.ask(self._reach(http, step.seconds))
                        if step.opens:
                            stack.callback(answer.close)
                    except Exception as error:
                        failure = self._error(error)
                else:
                    yield step


class AsyncClient(_Client):
    """The same as Client, method by method, for asyncio."""

    _http: Any = None

    async def __aenter__(self) -> Self:
        self._http = self._made()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()
        self._http = None

    async def wake(self, timeout: float = ASK_SECONDS) -> None:
        await self._run(rules.wake(self.target, self.local, Deadline(timeout)))

    async def status(self, timeout: float = ASK_SECONDS) -> Status:
        return await self._run(rules.status(self.target, self.local, Deadline(timeout)))

    async def watch(
        self, timeout: float = WAIT_SECONDS, until: Callable[[Status], bool] = is_ready
    ) -> AsyncGenerator[Status, None]:
        async for status in self._carry_out(rules.watch(self.target, self.local, timeout, until), []):
            yield status

    async def wait_until_ready(self, timeout: float = WAIT_SECONDS) -> Status:
        return [status async for status in self.watch(timeout)][-1]

    async def generate(self, prompt: str, timeout: float = WAIT_SECONDS, **request: Any) -> dict[str, Any]:
        body = {"prompt": prompt, **request}
        return await self._run(rules.generate(self.target, self.local, body, Deadline(timeout)))

    async def events(self, prompt: str, timeout: float = WAIT_SECONDS, **request: Any) -> AsyncGenerator[Event, None]:
        body = {"prompt": prompt, **request}
        steps = rules.events(self.target, self.local, body, Deadline(timeout))
        # Closed with this, and not whenever it is collected.
        async with contextlib.aclosing(self._carry_out(steps, [])) as found:
            async for event in found:
                yield event

    async def submit(self, prompt: str, webhook: str, timeout: float = ASK_SECONDS, **request: Any) -> str:
        body = {"prompt": prompt, **request}
        return await self._run(rules.submit(self.target, self.local, body, webhook, Deadline(timeout)))

    async def submitted(self, request_id: str, timeout: float = ASK_SECONDS) -> Any:
        return await self._run(rules.submitted(self.local, request_id, Deadline(timeout)))

    async def autoscaling(self, timeout: float = ASK_SECONDS, **changes: int) -> dict[str, int]:
        return await self._run(rules.autoscaling(self.target, self.local, changes, Deadline(timeout)))

    async def environment(self, timeout: float = ASK_SECONDS) -> Any:
        return await self._run(rules.environment(self.target, self.local, Deadline(timeout)))

    async def change_schedules(self, settings: Any, timeout: float = ASK_SECONDS) -> Any:
        return await self._run(rules.change_schedules(self.target, self.local, settings, Deadline(timeout)))

    async def startups(self, deployment_id: str, timeout: float = ASK_SECONDS, **window: Any) -> list[Any] | None:
        return await self._run(rules.startups(self.target, self.local, deployment_id, window, Deadline(timeout)))

    async def startups_summary(self, timeout: float = ASK_SECONDS, **window: int) -> Any:
        return await self._run(rules.startups_summary(self.target, self.local, window, Deadline(timeout)))

    async def ask_management(self, method: str, timeout: float = ASK_SECONDS, **arguments: Any) -> Any:
        return await self._run(rules.ask_management(self.local, method, Deadline(timeout), **arguments))

    def _made(self) -> Any:
        import httpx

        from fast_truss.transport import made, raise_for_error_async

        return made(httpx.AsyncClient, self._options(raise_for_error_async))

    async def _run(self, steps: Steps[Result]) -> Result:
        result: list[Result] = []
        async for _ in self._carry_out(steps, result):
            pass
        return result[0]

    async def _carry_out(self, steps: Steps[Result], result: list[Result]) -> AsyncGenerator[Any, None]:
        answer: Any = None
        failure: ClientError | None = None
        async with contextlib.AsyncExitStack() as stack:
            http = self._http or await stack.enter_async_context(self._made())
            while True:
                try:
                    step = steps.throw(failure) if failure else steps.send(answer)
                except StopIteration as stop:
                    result.append(stop.value)
                    return
                answer, failure = None, None
                if isinstance(step, Wait):
                    self._on_pause(step)
                    await asyncio.sleep(step.seconds)
                elif isinstance(step, Call):
                    try:
                        async with asyncio.timeout(step.seconds):
                            answer = await step.ask(self._reach(http, step.seconds))
                        if step.opens:
                            stack.push_async_callback(answer.aclose)
                    except Exception as error:
                        failure = self._error(error)
                else:
                    yield step


def image_bytes(answer: dict[str, Any]) -> list[bytes]:
    """Return the files that an answer of generate() holds. Raises UnexpectedAnswer."""
    try:
        files = [base64.b64decode(entry["image"], validate=True) for entry in answer["images"]]
    except (KeyError, TypeError, ValueError):
        files = []
    if not files:
        raise UnexpectedAnswer("The answer holds no image: is this the model of this project?")
    return files

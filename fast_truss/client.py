"""AsyncClient: wakes, watches and calls the model. Every method raises ClientError."""

import asyncio
import contextlib
import copy
import itertools
import json
import operator
from collections.abc import AsyncGenerator, Callable
from typing import Any, Self

from fast_truss import events, policy
from fast_truss.deployment import READY, Settings, Status, Target, checked_autoscaling, settings_of, status_of
from fast_truss.errors import ClientError, InvalidInput, NotFound, NotReady, RequestRefused, TimedOut
from fast_truss.events import Event
from fast_truss.policy import Deadline, Kind, Wait

# The paths of Truss's server begin with this.
SERVER = "/v1/models/model"


class AsyncClient:
    """Wakes, watches and calls the model.

    In an `async with` block it keeps its connections; outside, each call makes its own.
    """

    def __init__(
        self,
        target: Target,
        url: str | None = None,
        on_pause: Callable[[Wait], None] | None = None,
        transport: Any = None,
    ) -> None:
        """url: of a local server, in place of Baseten. on_pause: called before each new try. transport: for tests."""
        # Here, and not above: the SDK takes half a second, which `--help` need not wait for.
        from fast_truss.transport import route_to

        self.target, self.local = target, url is not None
        self._route = route_to(target, url)
        self._on_pause, self._transport = on_pause, transport
        self._reach: Any = None

    async def __aenter__(self) -> Self:
        from fast_truss.transport import Reach

        self._reach = Reach(self._route, self._transport)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reach.http.aclose()
        self._reach = None

    async def wake(self, timeout: float = policy.ASK_SECONDS) -> None:
        """Start a replica. Returns at once: see wait_until_ready(). Raises DeploymentFailed if it cannot start."""
        if not self.local:
            deadline, path = Deadline(timeout), f"{self.target.path}/wake"
            await self._ask(Kind.WAKE, lambda to: to.send("POST", path, expected=(202,)), deadline)
            await self._raise_if_failed(deadline)

    async def status(self, timeout: float = policy.ASK_SECONDS) -> Status:
        """Return the status now."""
        return await self._status(Deadline(timeout))

    async def watch(
        self, timeout: float = policy.WAIT_SECONDS, until: Callable[[Status], bool] = operator.attrgetter("ready")
    ) -> AsyncGenerator[Status, None]:
        """Yield each new status until one is as asked, for at most timeout seconds."""
        deadline = Deadline(timeout)
        seen: Status | None = None
        async with self._kept() as client:
            while True:
                now = await client._status(deadline)
                if seen is None or (now.status, now.replicas) != (seen.status, seen.replicas):
                    yield now
                seen = now
                if until(now):
                    return
                now.raise_if_failed()
                if deadline.left() <= policy.LEAST_PAUSE:
                    raise TimedOut(f"The model is still {now.status} after {policy.shown(timeout)}: gave up waiting.")
                await asyncio.sleep(policy.LEAST_PAUSE)

    async def wait_until_ready(self, timeout: float = policy.WAIT_SECONDS) -> Status:
        """Return when a replica can answer, after at most timeout seconds. It wakes nothing: see wake()."""
        return [status async for status in self.watch(timeout)][-1]

    async def generate(self, /, prompt: str, timeout: float = policy.WAIT_SECONDS, **request: Any) -> dict[str, Any]:
        """Return the model's answer: see image_bytes(). request: the other fields, see schema().

        Goes through a cold start: it tries again, for at most timeout seconds.
        """
        answer: dict[str, Any] = await self._predict(_body(prompt, request), Deadline(timeout))
        return answer

    async def events(
        self, /, prompt: str, timeout: float = policy.WAIT_SECONDS, **request: Any
    ) -> AsyncGenerator[Event, None]:
        """Yield each Event of a request: its steps, and at last the answer. Closed before, the work on it ends.

        Goes through a cold start like generate(). What broke off after the first event is not asked for again.
        """
        deadline, body = Deadline(timeout), _body(prompt, request)
        async with self._kept() as client:
            try:
                response = await client._predict({**body, "stream": True}, deadline, stream=True)
            except RequestRefused as error:
                if "`stream`" not in str(error):
                    raise
                # A deployment that is older than this client: it has made nothing yet.
                yield Event("result", await client._predict(body, deadline))
                return
            whole = Deadline(min(policy.PREDICT_SECONDS, deadline.left()))
            async with contextlib.aclosing(response), contextlib.aclosing(events.read(response)) as found:
                while event := await client._once(lambda _: anext(found, None), whole.left()):
                    yield event

    async def schema(self, timeout: float = policy.ASK_SECONDS) -> dict[str, Any]:
        """Return the JSON schema of a request, from the deployment itself. Raises NotFound where it gives none.

        On Baseten this wakes the deployment, as any request does.
        """
        # Baseten passes on what comes below /sync.
        path = f"{SERVER}/schema" if self.local else f"{self.target.path}/sync{SERVER}/schema"
        answer = await self._ask(Kind.READ, lambda to: to.json("GET", path), Deadline(timeout))
        found = answer.get("input_schema")
        if not isinstance(found, dict) or not isinstance(found.get("properties"), dict):
            raise NotFound("The deployment gives no schema of its requests.")
        return found

    async def autoscaling(self, /, timeout: float = policy.ASK_SECONDS, **changes: int) -> Settings:
        """Return the autoscaling settings as Baseten gives them, after the changes if there are any.

        Their names are those of the SDK's UpdateAutoscalingSettings.
        """
        request, deadline = checked_autoscaling(changes), Deadline(timeout)
        found = await self._describe(deadline)
        if not changes:
            return settings_of(found)
        if self.target.environment:
            from baseten.client.managementapi import UpdateEnvironmentRequest

            # Those of its deployment alone would be gone with the next one that is promoted.
            method = "patch_models_environments"
            arguments = {**self.target.names, "request": UpdateEnvironmentRequest(autoscaling_settings=request)}
        else:
            method = "patch_models_deployments_autoscaling_settings"
            arguments = {**self.target.names, "deployment_id": found.id, "request": request}
        answer = await self._sdk(Kind.CHANGE, method, deadline, arguments)
        settings = settings_of(getattr(answer, "environment", None) or await self._describe(deadline))
        # vars(): the SDK calls both deprecated in the answer of an environment.
        settings.answered, settings.message = (vars(answer).get(name) for name in ("status", "message"))
        return settings

    async def startups(
        self, /, deployment_id: str, timeout: float = policy.ASK_SECONDS, **window: Any
    ) -> list[Any] | None:
        """Return a list of the newest startups, as the SDK's StartupAttempt. None: Baseten keeps no record."""
        # The SDK asks for both, though the API does not.
        window = {"sort_by": "STARTED_AT", "direction": "desc", **window}
        found = await self._recorded("startups", deployment_id, Deadline(timeout), window)
        return found.items if found else None

    async def startups_summary(self, /, timeout: float = policy.ASK_SECONDS, **window: int) -> Any:
        """Return the SDK's StartupSummary. None: there is no record."""
        deadline = Deadline(timeout)
        single = "" if self.target.environment else (await self._status(deadline)).deployment_id
        return await self._recorded("startups_summary", single, deadline, window)

    async def ask_management(self, /, method: str, timeout: float = policy.ASK_SECONDS, **arguments: Any) -> Any:
        """Return the answer to a reading method of the SDK's management API, such as get_secrets."""
        return await self._sdk(Kind.READ, method, Deadline(timeout), arguments)

    async def change_management(self, /, method: str, timeout: float = policy.ASK_SECONDS, **arguments: Any) -> Any:
        """Call a changing method of that API, such as delete_models_deployments_replicas.

        It is tried again only where the first request was certainly not carried out.
        """
        return await self._sdk(Kind.ONCE, method, Deadline(timeout), arguments)

    async def _predict(self, body: dict[str, Any], deadline: Deadline, stream: bool = False) -> Any:
        path = f"{SERVER}:predict" if self.local else f"{self.target.path}/predict"

        def ask(to: Any) -> Any:
            return to.send("POST", path, body, stream=True) if stream else to.json("POST", path, body)

        return await self._ask(Kind.PREDICT, ask, deadline, policy.PREDICT_SECONDS)

    async def _status(self, deadline: Deadline) -> Status:
        if not self.local:
            return status_of(self.target, await self._describe(deadline))
        path = f"{SERVER}/loaded"
        try:
            await self._ask(Kind.READ, lambda to: to.json("GET", path), deadline, told=NotReady)
        except NotReady:
            return Status("LOADING_MODEL", 0, "local", None)
        return Status(READY, 1, "local", None)

    async def _describe(self, deadline: Deadline, **how: Any) -> Any:
        what = "environments_env_name" if self.target.environment else "deployments_deployment_id"
        return await self._sdk(Kind.READ, f"get_models_{what}", deadline, self.target.names, **how)

    async def _sdk(self, kind: Kind, method: str, deadline: Deadline, arguments: Any, **how: Any) -> Any:
        if self.local:
            raise InvalidInput("This exists on Baseten only: leave out --url.")
        self.target.check_names(**{name: value for name, value in arguments.items() if isinstance(value, str)})
        return await self._ask(kind, lambda to: getattr(to.management, method)(**arguments), deadline, **how)

    async def _recorded(self, what: str, deployment_id: str, deadline: Deadline, window: dict[str, Any]) -> Any:
        """Return what is read in the record of startups, or None where there is no record."""
        from baseten.client import managementapi

        kind, names = "environments", dict(self.target.names)
        if not self.target.environment:
            kind, names["deployment_id"] = "deployments", deployment_id
        method = f"get_models_{kind}_{what}"
        params = getattr(managementapi, f"{method}_params".title().replace("_", ""))(**window)
        try:
            return await self._sdk(Kind.READ, method, deadline, {**names, "params": params})
        except ClientError as error:
            if error.status in (403, 404):  # it is off
                return None
            raise

    async def _raise_if_failed(self, deadline: Deadline) -> None:
        """Raise DeploymentFailed if that is the status. Any other answer, and none, is as good as no look."""
        glance = Deadline(min(policy.GLANCE_SECONDS, deadline.left()))
        try:
            now = status_of(self.target, await self._describe(glance, told=ClientError))
        except ClientError:
            return
        now.raise_if_failed()

    async def _ask(
        self,
        kind: Kind,
        ask: Callable[[Any], Any],
        deadline: Deadline,
        seconds: float = policy.OTHER_SECONDS,
        told: type[ClientError] | tuple[()] = (),
    ) -> Any:
        """Return the answer of ask, a request on a transport.Reach, after as many tries as policy.py allows.

        told: an error that is an answer to the caller, and ends the tries.
        """
        async with self._kept() as client:
            for tries in itertools.count(1):
                try:
                    answer = await client._once(ask, max(min(seconds, deadline.left()), 0.01))
                    deadline.answered = True
                    return answer
                except told:
                    raise
                except ClientError as error:
                    deadline.answered |= error.status is not None
                    # A request is tried for as long as a cold start takes, and a failed deployment never starts.
                    unlikely = isinstance(error, NotFound) or (tries > 1 and error.status is not None)
                    if unlikely and not self.local and kind in (Kind.PREDICT, Kind.WAKE):
                        await client._raise_if_failed(deadline)
                    wait = Wait(policy.next_pause(kind, error, tries, deadline), error)
                if self._on_pause:
                    self._on_pause(wait)
                await asyncio.sleep(wait.seconds)

    async def _once(self, ask: Callable[[Any], Any], seconds: float) -> Any:
        """Return the answer to one request, which may take so many seconds in all."""
        from fast_truss.transport import fitting

        try:
            async with asyncio.timeout(seconds):
                return await ask(self._reach)
        except Exception as error:
            return fitting(error, self._route.key)

    def _kept(self) -> contextlib.AbstractAsyncContextManager["AsyncClient"]:
        """Return a client that keeps its connections in an `async with` block: this one, if it is in one."""
        if self._reach:
            return contextlib.nullcontext(self)
        return copy.copy(self)


def _body(prompt: str, request: dict[str, Any]) -> dict[str, Any]:
    if "stream" in request:
        raise InvalidInput("stream is not a field to give: use events(), which asks for it and reads the answer.")
    body = {"prompt": prompt, **request}
    try:
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"The request holds what JSON cannot: {error}.") from None
    return body

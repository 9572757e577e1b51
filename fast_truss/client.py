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

SERVER = "/v1/models/model"  # prefix of the paths of Truss's server


class AsyncClient:
    """Wakes, watches and calls the model.

    In an `async with` block it reuses connections; outside, each call opens its own.
    """

    def __init__(
        self,
        target: Target,
        url: str | None = None,
        on_pause: Callable[[Wait], None] | None = None,
        transport: Any = None,
    ) -> None:
        """url: a local server instead of Baseten. on_pause: called before each retry. transport: for tests."""
        # Importing the SDK takes half a second, which `--help` does not need.
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
        """Return the current status."""
        return await self._status(Deadline(timeout))

    async def watch(
        self, timeout: float = policy.WAIT_SECONDS, until: Callable[[Status], bool] = operator.attrgetter("ready")
    ) -> AsyncGenerator[Status, None]:
        """Yield each new status until `until` is true for one. Raises TimedOut after timeout seconds."""
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
                    raise TimedOut(f"The model is still {now.status} after {policy.shown(timeout)}: wait longer.")
                await asyncio.sleep(policy.LEAST_PAUSE)

    async def wait_until_ready(self, timeout: float = policy.WAIT_SECONDS) -> Status:
        """Return when a replica can answer. Raises TimedOut after timeout seconds. Wakes nothing: see wake()."""
        return [status async for status in self.watch(timeout)][-1]

    async def generate(self, /, prompt: str, timeout: float = policy.WAIT_SECONDS, **request: Any) -> dict[str, Any]:
        """Return the model's answer: see image_bytes(). request: other fields, see schema().

        Retries through a cold start, for at most timeout seconds.
        """
        answer: dict[str, Any] = await self._predict(_body(prompt, request), Deadline(timeout))
        return answer

    async def events(
        self, /, prompt: str, timeout: float = policy.WAIT_SECONDS, **request: Any
    ) -> AsyncGenerator[Event, None]:
        """Yield each Event of a request: its steps, then the answer. Closing the generator cancels the request.

        Retries through a cold start like generate(), but not after the first event.
        """
        deadline, body = Deadline(timeout), _body(prompt, request)
        async with self._kept() as client:
            try:
                response = await client._predict({**body, "stream": True}, deadline, stream=True)
            except RequestRefused as error:
                if "`stream`" not in str(error):
                    raise
                # The deployment is older than streaming, and has not generated anything yet.
                yield Event("result", await client._predict(body, deadline))
                return
            whole = Deadline(min(policy.PREDICT_SECONDS, deadline.left()))
            async with contextlib.aclosing(response), contextlib.aclosing(events.read(response)) as found:
                while event := await client._once(lambda _: anext(found, None), whole.left()):
                    yield event

    async def schema(self, timeout: float = policy.ASK_SECONDS) -> dict[str, Any]:
        """Return the JSON schema of a request, from the deployment. Raises NotFound if it has none.

        On Baseten this wakes the deployment, as any request does.
        """
        # Baseten forwards paths below /sync to the server.
        path = f"{SERVER}/schema" if self.local else f"{self.target.path}/sync{SERVER}/schema"
        answer = await self._ask(Kind.READ, lambda to: to.json("GET", path), Deadline(timeout))
        found = answer.get("input_schema")
        if not isinstance(found, dict) or not isinstance(found.get("properties"), dict):
            raise NotFound("The deployment has no schema of its requests: push it again with a newer template.")
        return found

    async def autoscaling(self, /, timeout: float = policy.ASK_SECONDS, **changes: int) -> Settings:
        """Apply the changes, if any, and return Baseten's autoscaling settings.

        The names are the fields of the SDK's UpdateAutoscalingSettings.
        """
        request, deadline = checked_autoscaling(changes), Deadline(timeout)
        found = await self._describe(deadline)
        if not changes:
            return settings_of(found)
        if self.target.environment:
            from baseten.client.managementapi import UpdateEnvironmentRequest

            # Settings of the deployment alone would be lost when the next one is promoted.
            method = "patch_models_environments"
            arguments = {**self.target.names, "request": UpdateEnvironmentRequest(autoscaling_settings=request)}
        else:
            method = "patch_models_deployments_autoscaling_settings"
            arguments = {**self.target.names, "deployment_id": found.id, "request": request}
        answer = await self._sdk(Kind.CHANGE, method, deadline, arguments)
        settings = settings_of(getattr(answer, "environment", None) or await self._describe(deadline))
        # vars(): the SDK marks both as deprecated in an environment's answer.
        settings.answered, settings.message = (vars(answer).get(name) for name in ("status", "message"))
        return settings

    async def startups(
        self, /, deployment_id: str, timeout: float = policy.ASK_SECONDS, **window: Any
    ) -> list[Any] | None:
        """Return the newest startups as the SDK's StartupAttempt. None: Baseten keeps no record."""
        # The SDK requires both, though the API does not.
        window = {"sort_by": "STARTED_AT", "direction": "desc", **window}
        found = await self._recorded("startups", deployment_id, Deadline(timeout), window)
        return found.items if found else None

    async def startups_summary(self, /, timeout: float = policy.ASK_SECONDS, **window: int) -> Any:
        """Return the SDK's StartupSummary. None: Baseten keeps no record."""
        deadline = Deadline(timeout)
        single = "" if self.target.environment else (await self._status(deadline)).deployment_id
        return await self._recorded("startups_summary", single, deadline, window)

    async def ask_management(self, /, method: str, timeout: float = policy.ASK_SECONDS, **arguments: Any) -> Any:
        """Call a read-only method of the SDK's management API, such as get_secrets."""
        return await self._sdk(Kind.READ, method, Deadline(timeout), arguments)

    async def change_management(self, /, method: str, timeout: float = policy.ASK_SECONDS, **arguments: Any) -> Any:
        """Call a method of that API with side effects, such as delete_models_deployments_replicas.

        Retried only if the first request certainly had no effect.
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
            raise InvalidInput("Only Baseten has this: leave out --url.")
        self.target.check_names(**{name: value for name, value in arguments.items() if isinstance(value, str)})
        return await self._ask(kind, lambda to: getattr(to.management, method)(**arguments), deadline, **how)

    async def _recorded(self, what: str, deployment_id: str, deadline: Deadline, window: dict[str, Any]) -> Any:
        """Return the answer of one of the API's startup methods, or None if Baseten keeps no record."""
        from baseten.client import managementapi

        kind, names = "environments", dict(self.target.names)
        if not self.target.environment:
            kind, names["deployment_id"] = "deployments", deployment_id
        method = f"get_models_{kind}_{what}"
        params = getattr(managementapi, f"{method}_params".title().replace("_", ""))(**window)
        try:
            return await self._sdk(Kind.READ, method, deadline, {**names, "params": params})
        except ClientError as error:
            if error.status in (403, 404):  # the beta is off
                return None
            raise

    async def _raise_if_failed(self, deadline: Deadline) -> None:
        """Raise DeploymentFailed if the deployment failed. Ignores errors of the status request itself."""
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
        """Return the answer of ask, a request on a transport.Reach, retrying as policy.py allows.

        told: errors that are raised without a retry.
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
                    # Retries last as long as a cold start, but a failed deployment never starts.
                    unlikely = isinstance(error, NotFound) or (tries > 1 and error.status is not None)
                    if unlikely and not self.local and kind in (Kind.PREDICT, Kind.WAKE):
                        await client._raise_if_failed(deadline)
                    wait = Wait(policy.next_pause(kind, error, tries, deadline), error)
                if self._on_pause:
                    self._on_pause(wait)
                await asyncio.sleep(wait.seconds)

    async def _once(self, ask: Callable[[Any], Any], seconds: float) -> Any:
        """Return the answer to one request, which may take at most this many seconds."""
        from fast_truss.transport import fitting

        try:
            async with asyncio.timeout(seconds):
                return await ask(self._reach)
        except Exception as error:
            return fitting(error, self._route.key)

    def _kept(self) -> contextlib.AbstractAsyncContextManager["AsyncClient"]:
        """Return this client if it is inside `async with`, or a copy to enter."""
        if self._reach:
            return contextlib.nullcontext(self)
        return copy.copy(self)


def _body(prompt: str, request: dict[str, Any]) -> dict[str, Any]:
    if "stream" in request:
        raise InvalidInput("stream cannot be set: use events(), which streams the answer.")
    body = {"prompt": prompt, **request}
    try:
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"The request cannot be written as JSON: {error}.") from None
    return body

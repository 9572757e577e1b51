"""Every rule of the client, once: a generator that yields what to ask and how long to wait.

api.py carries them out, with and without asyncio. What goes wrong is thrown into the generator.
"""

import dataclasses
import json
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from fast_truss.errors import (
    ClientError,
    ConnectionLost,
    DeploymentFailed,
    InvalidInput,
    KeyRefused,
    NotFound,
    NotReady,
    RequestRefused,
    TimedOut,
    UnexpectedAnswer,
)
from fast_truss.events import SILENT_SECONDS, Body, Event, Reader
from fast_truss.policy import LEAST_PAUSE, OTHER_SECONDS, PREDICT_SECONDS, Deadline, Kind, next_pause, shown
from fast_truss.target import Target

READY = "ACTIVE"
FAILED = {
    "FAILED",
    "BUILD_FAILED",
    "BUILD_STOPPED",
    "DEPLOY_FAILED",
    "DEACTIVATING",
    "DEACTIVATED",
    "INACTIVE",
    "UNHEALTHY",
}
LOADED_PATH = "/v1/models/model/loaded"
PREDICT_PATH = "/v1/models/model:predict"
# Baseten takes no more of an async request.
ASYNC_BODY_BYTES = 256 * 1024


@dataclasses.dataclass(frozen=True)
class Status:
    """status: Baseten's own word, such as SCALED_TO_ZERO, WAKING_UP, LOADING_MODEL or ACTIVE.

    autoscaling: the settings that are known, by their names, of the environment or of the single deployment. None:
    Baseten does not say.
    """

    status: str
    replicas: int
    deployment_id: str
    autoscaling: dict[str, int] | None

    @property
    def ready(self) -> bool:
        """True when a replica can answer at once."""
        return self.status == READY and self.replicas >= 1


@dataclasses.dataclass(frozen=True)
class Call:
    """ask: makes the request on a transport.Reach. seconds: it may take. opens: the answer is open, to be closed."""

    kind: Kind
    ask: Callable[[Any], Any]
    seconds: float = OTHER_SECONDS
    opens: bool = False


@dataclasses.dataclass(frozen=True)
class Wait:
    """A pause. reason: what went wrong before it, if anything did."""

    seconds: float
    reason: ClientError | None = None


Result = TypeVar("Result")
Steps = Generator[Call | Wait | Status | Event, Any, Result]


def persist(
    call: Call, deadline: Deadline, answered: bool = False, told: tuple[type[ClientError], ...] = ()
) -> Steps[Any]:
    """Return the answer, after as many tries as policy.py allows.

    answered: the address is known to be right. told: errors that are an answer to the caller, and end the tries.
    """
    tries = 0
    while True:
        tries += 1
        seconds = max(min(call.seconds, deadline.left()), 0.01)
        try:
            return (yield dataclasses.replace(call, seconds=seconds))
        except told:
            raise
        except ClientError as error:
            answered = answered or error.status is not None
            wait = Wait(next_pause(call.kind, error, tries, answered, deadline), error)
        yield wait


def wake(target: Target, local: bool, deadline: Deadline) -> Steps[None]:
    if local:
        return
    yield from persist(Call(Kind.WAKE, lambda to: target.call(to.inference, "wake")), deadline)


def status(target: Target, local: bool, deadline: Deadline, answered: bool = False) -> Steps[Status]:
    if local:
        try:
            loaded = Call(Kind.READ, lambda to: to.local("GET", LOADED_PATH))
            yield from persist(loaded, deadline, answered, told=(NotReady,))
        except NotReady:
            return Status("LOADING_MODEL", 0, "local", None)
        return Status(READY, 1, "local", None)
    found = yield from persist(Call(Kind.READ, lambda to: target.describe(to.management)), deadline, answered)
    return status_of(target, found)


def status_of(target: Target, found: Any) -> Status:
    """Return the status in what Baseten says of an environment or a deployment. Raises UnexpectedAnswer."""
    deployment = found.current_deployment if target.environment else found
    if deployment is None:
        raise UnexpectedAnswer(f"{target} has no deployment yet: `truss push --environment {target}` makes one.")
    settings = found.autoscaling_settings
    return Status(
        status=deployment.status,
        replicas=deployment.active_replica_count,
        deployment_id=deployment.id,
        autoscaling=settings.model_dump(exclude_none=True) if settings else None,
    )


def watch(target: Target, local: bool, timeout: float, until: Callable[[Status], bool]) -> Steps[None]:
    """Yield each new status until it is the one; then end."""
    deadline = Deadline(timeout)
    seen = None
    while True:
        now = yield from status(target, local, deadline, answered=seen is not None)
        if seen is None or (now.status, now.replicas) != (seen.status, seen.replicas):
            yield now
        seen = now
        if until(now):
            return
        if now.status in FAILED:
            raise DeploymentFailed(f"The deployment is {now.status}: its log on Baseten says why.")
        if deadline.left() <= LEAST_PAUSE:
            raise TimedOut(f"The model is still {now.status} after {shown(timeout)}: gave up waiting.")
        yield Wait(LEAST_PAUSE)


def generate(target: Target, local: bool, request: dict[str, Any], deadline: Deadline) -> Steps[dict[str, Any]]:
    """Return the model's answer, as JSON holds it."""
    _check_plain(request)

    def ask(to: Any) -> Any:
        if local:
            return to.local("POST", PREDICT_PATH, request)
        from baseten.client.inferenceapi import PredictInput

        return target.call(to.inference, "predict", request=PredictInput(request))

    answer = yield from persist(Call(Kind.PREDICT, ask, PREDICT_SECONDS), deadline)
    return _json(answer) if local else answer.root


def events(target: Target, local: bool, request: dict[str, Any], deadline: Deadline) -> Steps[None]:
    """Yield each Event, the last of which holds the model's answer. Tries again only while there is no answer yet."""
    _check_plain(request)
    body = {**request, "stream": True}
    call = Call(Kind.PREDICT, lambda to: to.opened(target, local, PREDICT_PATH, body), PREDICT_SECONDS, opens=True)
    try:
        response = yield from persist(call, deadline)
    except RequestRefused as error:
        if "`stream`" not in str(error):
            raise
        response = None
    if response is None:
        # A deployment that is older than this client: it has made nothing yet.
        yield Event("result", (yield from generate(target, local, request, deadline)))
        return
    parts, reader, whole = Body(response), Reader(), Deadline(min(PREDICT_SECONDS, deadline.left()))
    # One request, and each time the next part of its answer.
    while part := (yield Call(Kind.PREDICT, lambda _: parts.part(), max(min(SILENT_SECONDS, whole.left()), 0.01))):
        for event in reader.feed(part):
            yield event
            if event.kind == "result":
                return
    raise ConnectionLost("The answer ended before the images were there: try again.")


def submit(target: Target, local: bool, request: dict[str, Any], webhook: str, deadline: Deadline) -> Steps[str]:
    """Return the id of an async request. Its answer goes to webhook, and is kept nowhere else."""
    _only_on_baseten(local, "An async request")
    _check_plain(request)
    from baseten.client.inferenceapi import AsyncPredictRequest
    from pydantic import ValidationError

    if not webhook.startswith("https://"):
        raise InvalidInput(f"webhook is {webhook!r}: use an address that starts with https://.")
    try:
        body = AsyncPredictRequest(model_input=request, webhook_endpoint=webhook)
    except ValidationError:
        raise InvalidInput(f"webhook is {webhook!r}: use an address such as https://example.com/done.") from None
    size = len(body.model_dump_json(exclude_unset=True).encode())
    if size > ASYNC_BODY_BYTES:
        raise InvalidInput(
            f"The request has {size // 1024} KiB, and Baseten takes at most {ASYNC_BODY_BYTES // 1024} KiB of an async "
            "one: send a smaller image, or leave out the webhook."
        )
    call = Call(Kind.CREATE, lambda to: target.call(to.inference, "async_predict", request=body))
    request_id: str = (yield from persist(call, deadline)).request_id
    return request_id


def submitted(local: bool, request_id: str, deadline: Deadline) -> Steps[Any]:
    """Return what Baseten says of an async request: the SDK's AsyncRequestStatusResponse."""
    _only_on_baseten(local, "An async request")
    call = Call(Kind.READ, lambda to: to.inference.get_async_request_status(request_id=request_id))
    return (yield from persist(call, deadline))


def autoscaling(target: Target, local: bool, changes: dict[str, int], deadline: Deadline) -> Steps[dict[str, int]]:
    """Return the settings, after the changes if there are any."""
    _only_on_baseten(local, "Autoscaling")
    request = checked_autoscaling(changes)
    now = yield from status(target, local, deadline)
    if not changes:
        return now.autoscaling or {}

    from baseten.client.managementapi import UpdateEnvironmentRequest

    def ask(to: Any) -> Any:
        if not target.environment:
            return to.management.patch_models_deployments_autoscaling_settings(
                model_id=target.model_id, deployment_id=now.deployment_id, request=request
            )
        # Those of its deployment alone would be gone with the next one that is promoted.
        of_environment = UpdateEnvironmentRequest(autoscaling_settings=request)
        return to.management.patch_models_environments(
            model_id=target.model_id, env_name=target.environment, request=of_environment
        )

    yield from persist(Call(Kind.CHANGE, ask), deadline, answered=True)
    return {**(now.autoscaling or {}), **changes}


# Baseten's own model knows the names and the types, but not these bounds.
BOUNDS = {
    "min_replica": (0, 1000),
    "max_replica": (1, 1000),
    "autoscaling_window": (10, 3600),
    "scale_down_delay": (0, 3600),
    "concurrency_target": (1, 1000),
    "target_utilization_percentage": (1, 100),
    "max_scale_down_rate": (1, 50),
}


def checked_autoscaling(changes: dict[str, int]) -> Any:
    """Return the SDK's UpdateAutoscalingSettings. Raises InvalidInput for an unknown name or a value out of bounds."""
    for name, value in changes.items():
        if name not in BOUNDS:
            raise InvalidInput(f"{name} is no autoscaling setting: use {', '.join(BOUNDS)}.")
        low, high = BOUNDS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidInput(f"{name} is {value!r}: use a whole number from {low} to {high}.")
    least, most = changes.get("min_replica"), changes.get("max_replica")
    if least is not None and most is not None and least > most:
        raise InvalidInput(f"min_replica is {least}: use at most max_replica, which is {most}.")
    from baseten.client.managementapi import UpdateAutoscalingSettings

    return UpdateAutoscalingSettings(**changes)


def environment(target: Target, local: bool, deadline: Deadline) -> Steps[Any]:
    """Return the SDK's Environment. Raises InvalidInput for a target that is none."""
    _only_on_baseten(local, "An environment")
    if not target.environment:
        raise InvalidInput(f"{target} is a single deployment: name an environment with --environment.")
    return (yield from persist(Call(Kind.READ, lambda to: target.describe(to.management)), deadline))


def change_schedules(target: Target, local: bool, settings: Any, deadline: Deadline) -> Steps[Any]:
    """Send the SDK's UpdateAutoscalingScheduleSettings. Returns the Environment after it."""
    _only_on_baseten(local, "A schedule")
    from baseten.client.managementapi import UpdateEnvironmentRequest

    def ask(to: Any) -> Any:
        request = UpdateEnvironmentRequest(autoscaling_schedule_settings=settings)
        return to.management.patch_models_environments(
            model_id=target.model_id, env_name=target.environment, request=request
        )

    # A schedule without an id is new each time.
    is_new = any(getattr(each, "id", None) is None for each in settings.schedules or [])
    kind = Kind.CREATE if is_new else Kind.CHANGE
    return (yield from persist(Call(kind, ask), deadline, answered=True)).environment


def startups(
    target: Target, local: bool, deployment_id: str, window: dict[str, Any], deadline: Deadline
) -> Steps[list[Any] | None]:
    """Return the newest attempts in Baseten's record (the SDK's StartupAttempt), or None where there is no record."""
    _only_on_baseten(local, "The record of startups")
    call = Call(Kind.READ, lambda to: target.startups(to.management, deployment_id, **window))
    found = yield from _recorded(call, deadline)
    return found.items if found else None


def startups_summary(target: Target, local: bool, window: dict[str, int], deadline: Deadline) -> Steps[Any]:
    """Return the SDK's StartupSummary, or None where there is no record."""
    now = yield from status(target, local, deadline)
    _only_on_baseten(local, "The record of startups")
    call = Call(Kind.READ, lambda to: target.startups_summary(to.management, now.deployment_id, **window))
    return (yield from _recorded(call, deadline))


def _recorded(call: Call, deadline: Deadline) -> Steps[Any]:
    """Return what the call reads in the record of startups, or None where there is no record."""
    try:
        return (yield from persist(call, deadline, answered=True))
    except (NotFound, RequestRefused, KeyRefused) as error:
        if error.status == 401:
            raise
        return None  # 403: it is off


def ask_management(local: bool, method: str, deadline: Deadline, **arguments: Any) -> Steps[Any]:
    """Return what a method of the SDK's management API says that changes nothing."""
    _only_on_baseten(local, "The account")
    call = Call(Kind.READ, lambda to: getattr(to.management, method)(**arguments))
    return (yield from persist(call, deadline))


def _check_plain(request: dict[str, Any]) -> None:
    if "stream" in request:
        raise InvalidInput("stream is no field to give: events() asks for it, and reads the answer.")
    try:
        json.dumps(request, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"The request holds what JSON cannot: {error}.") from None


def _json(answer: Any) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UnexpectedAnswer("The answer is not whole, or no JSON object: try again.")
    return found


def _only_on_baseten(local: bool, what: str) -> None:
    if local:
        raise InvalidInput(f"{what} is a matter of Baseten: leave out --url.")

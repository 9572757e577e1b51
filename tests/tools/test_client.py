"""The client's rules, on answers that are made here, as objects of the SDK. No network, no waiting."""

import asyncio
import concurrent.futures
import contextlib
import datetime
import inspect
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from baseten.client import inferenceapi
from baseten.client import managementapi as sdk
from conftest import TEMPLATE

import fast_truss
from fast_truss import AsyncClient, Client, Target, policy, transport
from fast_truss.transport import Reach, route_to

KEY = "secret-key-123"
MODEL = Target("abc123")
IMAGE = {"images": [{"image": "aGk=", "seed": 1}], "content_type": "image/png"}
OWN = {"X-BASETEN-ERROR-SOURCE": "04"}
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The key is set, and waiting takes no time: the clock moves on by it. Returns the pauses."""
    seconds: list[float] = []

    async def sleep(pause: float) -> None:
        seconds.append(pause)

    monkeypatch.setenv("BASETEN_API_KEY", KEY)
    monkeypatch.setattr(time, "sleep", seconds.append)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(policy, "time", SimpleNamespace(monotonic=lambda: 1000.0 + sum(seconds)))
    return seconds


@pytest.fixture(params=[Client, AsyncClient])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Call a method of either client; the transport gives the answers."""

    def _call(answer: Answer, method: str, *arguments: Any, target: Target = MODEL, **options: Any) -> Any:
        made = request.param(target, transport=httpx.MockTransport(answer))
        result = getattr(made, method)(*arguments, **options)
        return asyncio.run(result) if inspect.isawaitable(result) else result

    return _call


def answers(
    *responses: httpx.Response | Exception, glance: httpx.Response | None = None
) -> tuple[Answer, list[httpx.Request]]:
    """Give the responses one after the other, and remember the requests.

    glance: given to each look at the status, which is not remembered.
    """
    left, seen = list(responses), []

    def answer(request: httpx.Request) -> httpx.Response:
        if glance is not None and request.method == "GET":
            return glance
        seen.append(request)
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return answer, seen


def reply(made: Any, code: int = 200) -> httpx.Response:
    return httpx.Response(code, json=made.model_dump(mode="json"))


def deployment(status: str = "ACTIVE", replicas: int = 1, **changes: Any) -> sdk.Deployment:
    settings = sdk.AutoscalingSettings(
        min_replica=0,
        max_replica=1,
        autoscaling_window=60,
        scale_down_delay=900,
        concurrency_target=1,
        target_utilization_percentage=70,
    )
    fields = {
        "id": "dep1",
        "created_at": datetime.datetime.now(datetime.UTC),
        "name": "first",
        "model_id": "abc123",
        "is_production": True,
        "is_development": False,
        "status": status,
        "active_replica_count": replicas,
        "autoscaling_settings": settings,
        "instance_type_name": "T4",
        "environment": "production",
        "request_backpressure_settings": sdk.RequestBackpressureSettings(),
    }
    return sdk.Deployment(**{**fields, **changes})


def environment(*arguments: Any, **changes: Any) -> sdk.Environment:
    current = changes.pop("current", deployment(*arguments))
    return sdk.Environment(
        name="production",
        created_at=datetime.datetime.now(datetime.UTC),
        model_id="abc123",
        current_deployment=current,
        autoscaling_settings=deployment().autoscaling_settings,
        promotion_settings=sdk.ModelPromotionSettings(),
        instance_type=sdk.InstanceType(
            id="t4",
            name="T4",
            memory_limit_mib=1,
            millicpu_limit=1,
            gpu_count=1,
            gpu_type="T4",
            gpu_memory_limit_mib=1,
        ),
        request_backpressure_settings=sdk.RequestBackpressureSettings(),
        **changes,
    )


def changed() -> httpx.Response:
    """What Baseten answers to a change of an environment."""
    return reply(sdk.UpdateEnvironmentResponse(environment=environment(), status="ACCEPTED", message="Done."))


TARGETS = [
    (Target("m1"), "https://model-m1.api.baseten.co/production/", "environments/production"),
    (
        Target("m1", "environment", "staging"),
        "https://model-m1.api.baseten.co/environments/staging/",
        "environments/staging",
    ),
    (Target("m1", "regional", "eu"), "https://model-m1-eu.api.baseten.co/", "environments/eu"),
    (Target("m1", "deployment", "d1"), "https://model-m1.api.baseten.co/deployment/d1/", "deployments/d1"),
    (Target("m1", "development"), "https://model-m1.api.baseten.co/development/", "deployments/development"),
]


@pytest.mark.parametrize(("target", "address", "path"), TARGETS, ids=[target.kind for target, *_ in TARGETS])
def test_every_target_has_its_paths(
    call: Callable[..., Any], slept: list[float], target: Target, address: str, path: str
) -> None:
    described = environment() if target.environment else deployment()
    answer, seen = answers(
        httpx.Response(202),
        reply(described),
        httpx.Response(200, json=IMAGE),
        reply(described),
        reply(described),
    )
    assert call(answer, "wake", target=target) is None
    assert call(answer, "generate", "a boat", target=target, seed=3) == IMAGE
    assert call(answer, "status", target=target).ready
    assert call(answer, "autoscaling", target=target)["scale_down_delay"] == 900
    urls = [f"{request.method} {request.url}" for request in seen]
    posted = [f"POST {address}{action}" for action in ("wake", "predict")]
    assert [urls[0], urls[2]] == posted
    assert [urls[1], *urls[3:]] == [f"GET https://api.baseten.co/v1/models/m1/{path}"] * 3
    assert {request.headers["Authorization"] for request in seen} == {f"Api-Key {KEY}"}
    assert inferenceapi.PredictInput.model_validate_json(seen[2].content).root == {"prompt": "a boat", "seed": 3}
    assert slept == []


def test_waiting_ends_when_a_replica_is_active(call: Callable[..., Any]) -> None:
    statuses = [("SCALED_TO_ZERO", 0), ("WAKING_UP", 0), ("LOADING_MODEL", 0), ("ACTIVE", 0), ("ACTIVE", 1)]
    answer, seen = answers(*[reply(environment(*status)) for status in statuses])
    assert call(answer, "wait_until_ready").ready
    assert len(seen) == 5


@pytest.mark.parametrize("blip", [503, 429, 500, httpx.ReadError("x"), httpx.ConnectError("x"), httpx.ReadTimeout("x")])
def test_a_blip_does_not_end_the_wait(call: Callable[..., Any], blip: Any) -> None:
    blips = [blip if isinstance(blip, Exception) else httpx.Response(blip)] * 5
    answer, seen = answers(reply(environment("WAKING_UP", 0)), *blips, reply(environment()))
    assert call(answer, "wait_until_ready").ready
    assert len(seen) == 7


def test_a_wake_that_never_becomes_ready_ends_in_a_sentence(call: Callable[..., Any], slept: list[float]) -> None:
    with pytest.raises(fast_truss.TimedOut, match="still WAKING_UP after 5 s"):
        call(lambda _: reply(environment("WAKING_UP", 0)), "wait_until_ready", 5)
    assert sum(slept) <= 5


@pytest.mark.parametrize("status", ["FAILED", "DEPLOY_FAILED", "INACTIVE", "BUILD_FAILED"])
def test_a_failed_deployment_ends_the_wait(call: Callable[..., Any], status: str) -> None:
    with pytest.raises(fast_truss.DeploymentFailed, match=f"is {status}"):
        call(lambda _: reply(environment(status, 0)), "wait_until_ready")


def test_an_environment_without_a_deployment_is_a_sentence(call: Callable[..., Any]) -> None:
    with pytest.raises(fast_truss.UnexpectedAnswer, match="truss push --environment production"):
        call(lambda _: reply(environment(current=None)), "status")


@pytest.mark.parametrize("status", [("UNHEALTHY", 0), ("UNHEALTHY", 1), ("UPDATING", 1), ("BUILDING", 0)])
def test_what_mends_itself_is_waited_for_and_no_longer_than_asked(
    call: Callable[..., Any], slept: list[float], status: tuple[str, int]
) -> None:
    answer, _ = answers(*[reply(environment(*status)) for _ in range(20)], reply(environment()))
    assert call(answer, "wait_until_ready").ready
    assert sum(slept) == 20
    with pytest.raises(fast_truss.TimedOut, match=f"still {status[0]} after 5 s"):
        call(lambda _: reply(environment(*status)), "wait_until_ready", 5)


@pytest.mark.parametrize("status", ["BUILD_FAILED", "FAILED", "INACTIVE"])
def test_a_deployment_that_failed_is_told_by_wake_and_ends_the_tries_of_a_request(
    call: Callable[..., Any], slept: list[float], status: str
) -> None:
    failed = reply(environment(status, 0))
    answer, _ = answers(httpx.Response(202), glance=failed)
    with pytest.raises(fast_truss.DeploymentFailed, match=f"is {status}: "):
        call(answer, "wake")
    answer, seen = answers(httpx.Response(500), httpx.Response(500), glance=failed)
    with pytest.raises(fast_truss.DeploymentFailed, match=f"is {status}: "):
        call(answer, "generate", "a boat")
    assert (len(seen), slept) == (2, [policy.PARKED_PAUSE])
    answer, seen = answers(httpx.Response(404), glance=failed)
    with pytest.raises(fast_truss.DeploymentFailed, match=f"is {status}: "):
        call(answer, "generate", "a boat")
    assert len(seen) == 1
    found = call(answer, "status")
    assert (found.status, found.ready) == (status, False)


@pytest.mark.parametrize("glance", [403, 500, "ACTIVE", "UNHEALTHY"])
def test_a_look_that_tells_no_failure_changes_nothing(call: Callable[..., Any], glance: Any) -> None:
    looked = httpx.Response(glance) if isinstance(glance, int) else reply(environment(glance, 0))
    answer, seen = answers(
        httpx.Response(202), *[httpx.Response(500)] * 5, httpx.Response(200, json=IMAGE), glance=looked
    )
    assert call(answer, "wake") is None
    assert call(answer, "generate", "a boat") == IMAGE
    assert len(seen) == 7


def without(body: dict[str, Any], path: str) -> dict[str, Any]:
    """Take the field at path out of body."""
    *parents, last = path.split(".")
    there = body
    for parent in parents:
        there = there[parent]
    del there[last]
    return body


@pytest.mark.parametrize("missing", ["status", "active_replica_count", "id"])
def test_an_answer_that_lacks_a_field_that_is_needed_is_a_sentence_that_names_it(
    call: Callable[..., Any], missing: str
) -> None:
    body = without(environment().model_dump(mode="json"), f"current_deployment.{missing}")
    with pytest.raises(fast_truss.UnexpectedAnswer, match=f"lacks `{missing}` of Deployment"):
        call(lambda _: httpx.Response(200, json=body), "status")


UNUSED = [
    "created_at",
    "instance_type",
    "promotion_settings",
    "current_deployment.autoscaling_settings",
    "current_deployment.instance_type_name",
    "current_deployment.request_backpressure_settings",
    "autoscaling_settings.concurrency_target",
]


@pytest.mark.parametrize("missing", UNUSED)
def test_an_answer_that_lacks_a_field_that_nobody_reads_is_an_answer(call: Callable[..., Any], missing: str) -> None:
    body = without(environment().model_dump(mode="json"), missing)
    assert call(lambda _: httpx.Response(200, json=body), "status").ready
    assert call(lambda _: httpx.Response(200, json=body), "autoscaling")["scale_down_delay"] == 900
    assert call(lambda _: httpx.Response(200, json=body), "wait_until_ready").ready


@pytest.mark.parametrize("missing", ["status", "message", "environment.created_at"])
def test_a_change_that_was_made_is_not_told_as_failed(call: Callable[..., Any], missing: str) -> None:
    body = without(json.loads(changed().content), missing)
    answer, seen = answers(reply(environment()), httpx.Response(200, json=body))
    found = call(answer, "autoscaling", scale_down_delay=900)
    assert found["scale_down_delay"] == 900
    assert found.answered == (None if missing == "status" else "ACCEPTED")
    assert len(seen) == 2


def test_a_list_keeps_what_fits_of_each_item(call: Callable[..., Any]) -> None:
    body = without({"deployments": [deployment().model_dump(mode="json")]}, "deployments")
    made = deployment().model_dump(mode="json")
    body["deployments"] = [without({**made}, "instance_type_name"), {**made, "id": 5}]
    answer, _ = answers(httpx.Response(200, json=body))
    first, second = call(answer, "ask_management", "get_models_deployments", model_id="abc123").deployments
    assert (first.id, second.status) == ("dep1", "ACTIVE")
    with pytest.raises(fast_truss.UnexpectedAnswer, match="lacks `instance_type_name`"):
        _ = first.instance_type_name
    assert getattr(second, "id", None) is None


def test_an_environment_without_a_deployment_has_settings(call: Callable[..., Any]) -> None:
    answer, _ = answers(*[reply(environment(current=None))] * 2, changed())
    assert call(answer, "autoscaling")["scale_down_delay"] == 900
    assert call(answer, "autoscaling", scale_down_delay=900)["min_replica"] == 0


def test_a_method_that_changes_something_is_called_once(call: Callable[..., Any]) -> None:
    names = {"model_id": "m1", "deployment_id": "d1", "replica_id": "r1"}
    for fault in (httpx.Response(500), httpx.Response(408), httpx.ReadError("x")):
        answer, seen = answers(fault)
        with pytest.raises(fast_truss.ClientError):
            call(answer, "change_management", "delete_models_deployments_replicas", **names)
        assert [request.method for request in seen] == ["DELETE"]
    answer, seen = answers(httpx.ConnectError("x"), httpx.Response(200, json={"success": True}))
    assert call(answer, "change_management", "delete_models_deployments_replicas", **names).success
    assert str(seen[1].url) == "https://api.baseten.co/v1/models/m1/deployments/d1/replicas/r1"


@pytest.mark.parametrize("name", ["..", ".", "", "a/b"])
def test_a_name_cannot_lead_to_another_path(call: Callable[..., Any], name: str) -> None:
    answer, seen = answers()
    names = {"model_id": "m1", "deployment_id": "d1", "replica_id": name}
    with pytest.raises(fast_truss.InvalidInput, match="replica_id is"):
        call(answer, "change_management", "delete_models_deployments_replicas", **names)
    assert seen == []


@pytest.mark.parametrize(("target", "address", "_"), TARGETS, ids=[target.kind for target, *_ in TARGETS])
def test_the_schema_comes_from_the_deployment(call: Callable[..., Any], target: Target, address: str, _: str) -> None:
    schema = {"properties": {"prompt": {"type": "string"}}}
    answer, seen = answers(
        httpx.Response(200, json={"input_schema": schema}), httpx.Response(404), httpx.Response(200, json={"x": 1})
    )
    assert call(answer, "schema", target=target) == schema
    assert str(seen[0].url) == f"{address}sync/v1/models/model/schema"
    for _ in range(2):
        with pytest.raises(fast_truss.NotFound):
            call(answer, "schema", target=target)


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[inspect.Parameter]]:
        found = {name: each for name, each in vars(kind).items() if not name.startswith("_")}
        return {name: list(inspect.signature(each).parameters.values()) for name, each in found.items()}

    assert methods(Client) == methods(AsyncClient)
    constructors = [list(inspect.signature(kind).parameters.values()) for kind in (Client, AsyncClient)]
    assert constructors[0] == constructors[1]
    assert all(getattr(Client, name).__doc__ for name in methods(Client))


def test_generate_goes_through_a_cold_start(call: Callable[..., Any], slept: list[float]) -> None:
    not_ready = httpx.Response(503, headers=OWN, json={"error": "Model with name model is not ready."})
    answer, seen = answers(
        httpx.Response(500),
        httpx.Response(429, headers={"Retry-After": "7"}),
        not_ready,
        httpx.ConnectError("no"),
        httpx.Response(408),
        httpx.Response(200, json=IMAGE),
        glance=reply(environment("LOADING_MODEL", 0)),
    )
    assert call(answer, "generate", "a boat", seed=3) == IMAGE
    assert [json.loads(r.content) for r in seen] == [{"prompt": "a boat", "seed": 3}] * 6
    assert slept == [30.0, 7.0, 4.0, 8.0, 30.0]


@pytest.mark.parametrize(
    ("code", "headers", "body", "kind"),
    [
        (503, OWN, {"error": "The GPU has too little memory for this request."}, fast_truss.ModelFailed),
        (500, OWN, {"error": "Internal Server Error (in model/chainlet)."}, fast_truss.ModelFailed),
        (429, OWN, {"error": "no more"}, fast_truss.RequestRefused),
        (500, {}, {"error": "x", "error_code": "application_error"}, fast_truss.ModelFailed),
        (400, OWN, {"error": "`width` is bad"}, fast_truss.RequestRefused),
        (413, {}, {"error": "too large"}, fast_truss.RequestRefused),
        (401, {}, {}, fast_truss.KeyRefused),
        (403, {}, {}, fast_truss.KeyRefused),
        (404, {}, {}, fast_truss.NotFound),
        (302, {}, {}, fast_truss.RequestRefused),
    ],
)
def test_what_cannot_succeed_is_asked_once(
    call: Callable[..., Any], slept: list[float], code: int, headers: Any, body: Any, kind: type
) -> None:
    answer, seen = answers(httpx.Response(code, headers=headers, json=body), glance=httpx.Response(403))
    with pytest.raises(kind) as caught:
        call(answer, "generate", "a boat")
    assert (len(seen), slept) == (1, [])
    assert (caught.value.status, caught.value.retryable) == (code, False)
    assert KEY not in str(caught.value)
    assert str(body.get("error", "")).rstrip(".") in str(caught.value)


@pytest.mark.parametrize("error", [httpx.ReadTimeout("no"), httpx.RemoteProtocolError("no"), httpx.ReadError("no")])
def test_an_image_that_may_have_been_made_is_not_asked_for_again(call: Callable[..., Any], error: Exception) -> None:
    answer, seen = answers(error)
    with pytest.raises(fast_truss.ConnectionLost) as caught:
        call(answer, "generate", "a boat")
    assert len(seen) == 1
    assert caught.value.retryable


def test_a_change_is_tried_again(call: Callable[..., Any]) -> None:
    body = reply(environment())
    answer, seen = answers(body, httpx.ReadError("x"), httpx.Response(503), changed())
    assert call(answer, "autoscaling", min_replica=0)["min_replica"] == 0
    assert len(seen) == 4


def test_an_address_that_never_answered_is_not_tried_for_long(call: Callable[..., Any], slept: list[float]) -> None:
    answer, seen = answers(*[httpx.ConnectError("no")] * 10)
    with pytest.raises(fast_truss.Unreachable, match="cannot be reached"):
        call(answer, "wait_until_ready")
    assert len(seen) == policy.STRANGER_TRIES


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "7"}, {}, 7.0),
        ({}, {"error": "x", "retry_after": 12}, 12.0),
        ({}, {"error": {"message": "x", "retry_after": 2.5}}, 2.5),
        ({"Retry-After": "0"}, {}, policy.LEAST_PAUSE),
        ({}, {"retry_after": 0}, policy.LEAST_PAUSE),
        *[
            ({"Retry-After": nonsense}, {"retry_after": nonsense}, policy.BUSY_PAUSE)
            for nonsense in ("", "-1", "nan", "inf", "1e3", "\u0662", "9" * 400, "Tue, 31 Dec 2030 23:59:00 GMT")
        ],
    ],
)
def test_the_pause_is_what_the_answer_says_and_never_none(
    call: Callable[..., Any], slept: list[float], headers: dict[str, str], body: dict[str, Any], seconds: float
) -> None:
    encoded = {name: value.encode() for name, value in headers.items()}
    answer, _ = answers(httpx.Response(429, headers=encoded, json=body), httpx.Response(200, json=IMAGE))
    assert call(answer, "generate", "a boat") == IMAGE
    assert slept == [seconds]


def test_an_answer_that_asks_for_more_time_than_there_is_ends_the_tries(
    call: Callable[..., Any], slept: list[float]
) -> None:
    busy = httpx.Response(429, headers={"Retry-After": "120"})
    answer, _ = answers(httpx.Response(429, headers={"Retry-After": "20"}), busy, glance=httpx.Response(403))
    with pytest.raises(fast_truss.TimedOut, match="asks to wait 120 s, but 40 s of 60 s are left") as caught:
        call(answer, "generate", "a boat", timeout=60)
    assert (caught.value.status, caught.value.retry_after) == (429, 120.0)
    assert slept == [20.0]


def test_generate_gives_up_in_a_sentence(call: Callable[..., Any], slept: list[float]) -> None:
    with pytest.raises(fast_truss.TimedOut, match=r"no answer within 10 s\. Last error: Baseten cannot answer now"):
        call(lambda _: httpx.Response(500), "generate", "a boat", timeout=10)
    with pytest.raises(fast_truss.TimedOut):
        call(lambda _: httpx.Response(429, headers={"Retry-After": "0"}), "generate", "a boat", timeout=10)
    assert len(slept) <= 10


@pytest.mark.parametrize("request_", [{"guidance_scale": float("nan")}, {"negative_prompt": "\udce9"}, {"x": b"x"}])
def test_what_json_cannot_hold_is_refused_before_it_is_sent(call: Callable[..., Any], request_: dict[str, Any]) -> None:
    answer, seen = answers()
    with pytest.raises(fast_truss.InvalidInput, match="cannot be written as JSON"):
        call(answer, "generate", "a boat", **request_)
    assert seen == []


def told(*kinds: str) -> bytes:
    """The first events of a request of two steps, as they are sent."""
    data = {
        "queued": {},
        "step": {"image": 1, "step": 1, "of": 2, "seconds": 0.5},
        "result": {**IMAGE, "warnings": ["the rest:\x85\u2028"]},
        "error": {"error": "The GPU has too little memory.", "status": 503},
    }
    events = {kind: f"event: {kind}\ndata: {json.dumps(each, ensure_ascii=False)}" for kind, each in data.items()}
    return "".join(f"{events.get(kind, ': still there')}\n\n" for kind in kinds).encode()


class Parts(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that comes in parts. An exception among them is raised."""

    def __init__(self, *parts: bytes | Exception) -> None:
        self.parts = list(parts)
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def streamed(*parts: bytes | Exception) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Parts(*parts))


@pytest.fixture(params=[Client, AsyncClient])
def follow(request: pytest.FixtureRequest) -> Callable[..., list[fast_truss.Event]]:
    """Return the events of a request of either client, until one is of the kind `last`."""

    def _follow(
        answer: Answer, seen: list[fast_truss.Event] | None = None, last: str = "", **options: Any
    ) -> list[fast_truss.Event]:
        made = request.param(options.pop("target", MODEL), transport=httpx.MockTransport(answer))
        seen = [] if seen is None else seen

        def follow_all() -> None:
            with contextlib.closing(made.events("a boat", **options)) as events:
                for event in events:
                    seen.append(event)
                    if event.kind == last:
                        return

        async def follow_all_async() -> None:
            async with contextlib.aclosing(made.events("a boat", **options)) as events:
                async for event in events:
                    seen.append(event)
                    if event.kind == last:
                        return

        if request.param is Client:
            follow_all()
        else:
            asyncio.run(follow_all_async())
        return seen

    return _follow


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_are_whole_however_they_come(follow: Callable[..., Any], size: int) -> None:
    whole = told("queued", "", "step", "result")
    answer, seen = answers(streamed(*[whole[start : start + size] for start in range(0, len(whole), size)]))
    found = follow(answer, seed=3)
    assert [event.kind for event in found] == ["queued", "step", "result"]
    assert found[1].data == {"image": 1, "step": 1, "of": 2, "seconds": 0.5}
    assert fast_truss.image_bytes(found[2].data) == [b"hi"]
    assert found[2].data["warnings"] == ["the rest:\x85\u2028"]
    assert json.loads(seen[0].content) == {"prompt": "a boat", "seed": 3, "stream": True}
    assert seen[0].headers["Accept"] == "text/event-stream"


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize(
    "text",
    [
        "event: step\r\ndata: STEP\r\n\r\nevent: result\r\ndata: RESULT\r\n\r\n",
        "event: step\rdata: STEP\r\revent: result\rdata: RESULT\r\r",
        "event:step\ndata:STEP\n\nevent:result\ndata:RESULT\n\n",
        "event:step\ndata:STEP\n\nevent:image\ndata:aG\ndata:k=\n\nevent:result\ndata:REST\n\n",
        'event: step\ndata: {\ndata: "image": 1, "step": 1,\ndata: "of": 1}\n\nevent: result\ndata: RESULT\n\n',
        "id: 1\n\n: still there\n\nretry: 5\n\nevent: step\ndata: STEP\n\nevent: result\ndata: RESULT\n\n",
    ],
)
def test_events_are_read_however_they_are_written(follow: Callable[..., Any], text: str, size: int) -> None:
    step = {"image": 1, "step": 1, "of": 1}
    rest = {**IMAGE, "images": [{**each, "image": None} for each in IMAGE["images"]]}
    whole = text.replace("STEP", json.dumps(step)).replace("RESULT", json.dumps(IMAGE))
    whole = whole.replace("REST", json.dumps(rest)).encode()
    answer, _ = answers(streamed(*[whole[start : start + size] for start in range(0, len(whole), size)]))
    assert follow(answer) == [fast_truss.Event("step", step), fast_truss.Event("result", IMAGE)]


@pytest.mark.parametrize(("target", "address", "_"), TARGETS, ids=[target.kind for target, *_ in TARGETS])
def test_every_target_has_events(follow: Callable[..., Any], target: Target, address: str, _: str) -> None:
    answer, seen = answers(streamed(told("queued", "result")))
    assert [event.kind for event in follow(answer, target=target)] == ["queued", "result"]
    assert str(seen[0].url) == f"{address}predict"
    assert seen[0].headers["Authorization"] == f"Api-Key {KEY}"


def test_events_go_through_a_cold_start_and_a_broken_stream_is_not_asked_for_again(
    follow: Callable[..., Any], slept: list[float]
) -> None:
    answer, seen = answers(
        httpx.Response(500),
        httpx.Response(429),
        streamed(told("queued", "result")),
        glance=reply(environment("WAKING_UP", 0)),
    )
    assert [event.kind for event in follow(answer)] == ["queued", "result"]
    assert (len(seen), slept) == (3, [30.0, 5.0])
    for broken in (httpx.ReadError("x"), httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x")):
        answer, seen = answers(streamed(told("queued", "step"), broken))
        found: list[fast_truss.Event] = []
        with pytest.raises(fast_truss.ConnectionLost):
            follow(answer, found)
        assert [event.kind for event in found] == ["queued", "step"]
        assert len(seen) == 1


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (told("queued", "step", "error"), fast_truss.ModelFailed, r"failed \(503: The GPU has too little memory\)"),
        (told("queued"), fast_truss.ConnectionLost, "ended before the images arrived"),
        (b"", fast_truss.ConnectionLost, "ended before the images arrived"),
        (b"event: step\ndata:\n\n", fast_truss.UnexpectedAnswer, "malformed event"),
        (b"event: step\n\n", fast_truss.UnexpectedAnswer, "malformed event"),
        (b"event: step\ndata: " + b"[" * 100_000 + b"\n\n", fast_truss.UnexpectedAnswer, "malformed event"),
        (b"event: step\ndata: {\n\n", fast_truss.UnexpectedAnswer, "malformed event"),
        (b"event: step\ndata: 5\n\n", fast_truss.UnexpectedAnswer, "malformed event"),
        (b"event: error\ndata: []\n\n", fast_truss.UnexpectedAnswer, "malformed event"),
        (b'event: step\ndata: {"image": 1, "step": 1, "of": null}\n\n', fast_truss.UnexpectedAnswer, "malformed event"),
        (b'event: step\ndata: {"step": 1}\n\n', fast_truss.UnexpectedAnswer, "malformed event"),
        (b'event: error\ndata: {"status": 1e400}\n\n', fast_truss.UnexpectedAnswer, "malformed event"),
        (b'event: error\ndata: {"status": "x"}\n\n', fast_truss.UnexpectedAnswer, "malformed event"),
        (b"event: image\ndata: aGk=\n\nevent: result\ndata: {}\n\n", fast_truss.UnexpectedAnswer, "malformed event"),
        (b'event: image\ndata: aGk=\n\nevent: result\ndata: {"images": []}\n\n', fast_truss.UnexpectedAnswer, "malf"),
        (b"<html>", fast_truss.ConnectionLost, "ended before the images arrived"),
    ],
)
def test_what_goes_wrong_in_a_stream_is_a_sentence(
    follow: Callable[..., Any], body: bytes, kind: type, sentence: str
) -> None:
    answer, seen = answers(streamed(body))
    with pytest.raises(kind, match=sentence):
        follow(answer)
    assert len(seen) == 1


def test_who_closes_the_events_closes_the_connection(follow: Callable[..., Any]) -> None:
    response = streamed(told("queued", "step"), told("step", "result"))
    parts = response.stream
    answer, _ = answers(response)
    assert [event.kind for event in follow(answer, last="step")] == ["queued", "step"]
    assert parts.closed


def test_a_deployment_that_is_older_is_asked_without_a_stream(follow: Callable[..., Any]) -> None:
    old = httpx.Response(
        400, headers=OWN, json={"error": "Input Parsing Error:\n  `stream`: Extra inputs are not permitted."}
    )
    answer, seen = answers(old, httpx.Response(200, json=IMAGE))
    assert follow(answer) == [fast_truss.Event("result", IMAGE)]
    assert [json.loads(request.content) for request in seen] == [
        {"prompt": "a boat", "stream": True},
        {"prompt": "a boat"},
    ]
    answer, seen = answers(httpx.Response(400, headers=OWN, json={"error": "`width` is bad"}))
    with pytest.raises(fast_truss.RequestRefused, match="`width` is bad"):
        follow(answer)
    assert len(seen) == 1


def test_a_stream_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_truss.events, "SILENT_SECONDS", 0.2)

    def say(server: socket.socket) -> None:
        for _ in range(2):
            with server.accept()[0] as connection, contextlib.suppress(OSError):
                connection.recv(65536)
                head = b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n\r\n"
                connection.sendall(head + told("queued"))
                # Until the client leaves.
                while connection.recv(65536):
                    pass

    async def follow_async(url: str) -> None:
        async for event in AsyncClient(MODEL, url=url).events("a boat"):
            assert event.kind == "queued"

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=say, args=[server])
        thread.start()
        url = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(fast_truss.ConnectionLost, match="in time"):
            list(Client(MODEL, url=url).events("a boat"))
        with pytest.raises(fast_truss.ConnectionLost, match="in time"):
            asyncio.run(follow_async(url))
        thread.join()


def test_an_answer_without_events_is_a_sentence(follow: Callable[..., Any]) -> None:
    answer, _ = answers(httpx.Response(200, html="<html>"))
    with pytest.raises(fast_truss.UnexpectedAnswer, match="not an event stream"):
        follow(answer)


def test_stream_is_no_field_of_a_plain_request(call: Callable[..., Any]) -> None:
    answer, seen = answers()
    with pytest.raises(fast_truss.InvalidInput, match="events"):
        call(answer, "generate", "a boat", stream=True)
    assert seen == []


@pytest.mark.parametrize("content", [{"content": b'{"images": ['}, {"json": [1]}, {"text": "hello"}])
def test_an_answer_that_is_none_is_a_sentence(call: Callable[..., Any], content: dict[str, Any]) -> None:
    with pytest.raises(fast_truss.UnexpectedAnswer, match="incomplete or not from Baseten"):
        call(lambda _: httpx.Response(200, **content), "generate", "a boat")


@pytest.mark.parametrize(
    ("code", "method", "arguments"),
    [
        (200, "wake", []),
        (204, "wake", []),
        (201, "generate", ["a boat"]),
        (202, "status", []),
    ],
)
def test_a_success_of_another_kind_is_a_sentence(
    call: Callable[..., Any], code: int, method: str, arguments: list[str]
) -> None:
    answer, _ = answers(httpx.Response(code, json=IMAGE))
    with pytest.raises(fast_truss.UnexpectedAnswer, match=f"the unexpected status {code}:"):
        call(answer, method, *arguments)


def refused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_an_address_that_is_wrong_is_told_with_what_is_likely(call: Callable[..., Any]) -> None:
    port = refused_port()
    with pytest.raises(
        fast_truss.Unreachable, match=rf"^http://127\.0\.0\.1:{port} cannot be reached: nothing listens"
    ):
        Client(MODEL, url=f"127.0.0.1:{port}").status()
    with pytest.raises(
        fast_truss.Unreachable, match=r"^http://model\.invalid cannot be reached: the host name cannot be resolved"
    ):
        Client(MODEL, url="http://model.invalid").generate("a boat")

    def timed_out(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("x", request=request)

    with pytest.raises(fast_truss.Unreachable, match=r"^https://api\.baseten\.co cannot be reached: it does not"):
        call(timed_out, "status")
    for status in (401, 403, 404):
        other = httpx.MockTransport(lambda _, status=status: httpx.Response(status, html="<h1>Another server</h1>"))
        with pytest.raises(
            fast_truss.NotFound,
            match=rf"^http://127\.0\.0\.1:{port} is not a model server \({status}\): check the port",
        ):
            Client(MODEL, url=f"127.0.0.1:{port}", transport=other).generate("a boat")
    # As the server of a web app, which shows its page for any path.
    page = httpx.MockTransport(lambda _: httpx.Response(200, html="<h1>Another server</h1>"))
    with pytest.raises(fast_truss.UnexpectedAnswer):
        Client(MODEL, url=f"127.0.0.1:{port}", transport=page).wait_until_ready()


def test_https_to_a_plain_server_is_told_as_that() -> None:
    def plain(server: socket.socket) -> None:
        for _ in range(policy.STRANGER_TRIES):
            with server.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=plain, args=[server])
        thread.start()
        with pytest.raises(fast_truss.Unreachable, match="TLS failed"):
            Client(MODEL, url=f"https://127.0.0.1:{server.getsockname()[1]}").status()
        thread.join()


ESCAPE = "\x1b[2J\x9b31m\u202eevil\x07"


def test_no_escape_code_of_an_answer_is_in_an_error_or_a_status(call: Callable[..., Any]) -> None:
    with pytest.raises(fast_truss.RequestRefused, match=r"\(400: \[2J31mevil\)") as caught:
        call(lambda _: httpx.Response(400, json={"error": ESCAPE}), "generate", "a boat")
    assert str(caught.value).isprintable()
    assert call(lambda _: reply(environment(f"NEW{ESCAPE}")), "status").status == "NEW[2J31mevil"


def test_the_key_is_in_no_error(call: Callable[..., Any]) -> None:
    with pytest.raises(fast_truss.RequestRefused) as caught:
        call(lambda _: httpx.Response(400, json={"error": f"bad key {KEY}"}), "generate", "a boat")
    assert KEY not in str(caught.value)
    assert KEY not in repr(route_to(MODEL, None))
    # A long reason is cut, and not within the key.
    for length in range(480, 500):
        answer, _ = answers(httpx.Response(400, json={"error": f"{'x' * length} {KEY} end"}))
        with pytest.raises(fast_truss.RequestRefused) as caught:
            call(answer, "generate", "a boat")
        assert "secret" not in str(caught.value)


def test_a_pause_is_told(slept: list[float]) -> None:
    told: list[Any] = []
    answer, _ = answers(httpx.Response(429), httpx.Response(200, json=IMAGE))
    Client(MODEL, transport=httpx.MockTransport(answer), on_pause=told.append).generate("a boat")
    assert [(wait.seconds, wait.reason.status) for wait in told] == [(5.0, 429)]


@pytest.mark.parametrize("method", ["startups", "startups_summary"])
def test_a_record_that_is_off_is_no_refused_key(call: Callable[..., Any], method: str) -> None:
    arguments = ["dep1"] if method == "startups" else []
    window = {"start_epoch_millis": 1, "end_epoch_millis": 2}
    answer, _ = answers(httpx.Response(403))
    assert call(answer, method, *arguments, **window) is None
    answer, _ = answers(httpx.Response(401))
    with pytest.raises(fast_truss.KeyRefused):
        call(answer, method, *arguments, **window)


def test_the_summary_of_startups_is_that_of_the_target(call: Callable[..., Any]) -> None:
    times = dict.fromkeys(("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms"), 4300)
    percentiles = sdk.StartupPercentiles(sample_count=1, **times)
    window = {"start_epoch_millis": 1, "end_epoch_millis": 2}
    summary = reply(sdk.StartupSummary(**window, total_duration_ms=percentiles, phase_duration_ms=[]))
    answer, seen = answers(summary, reply(deployment()), summary)
    for target in (MODEL, Target("abc123", "development")):
        assert call(answer, "startups_summary", target=target, **window).total_duration_ms.p50_ms == 4300
    asked = [seen[0].url.path, seen[2].url.path]
    paths = ("environments/production", "deployments/dep1")
    assert asked == [f"/v1/models/abc123/{path}/startups/summary" for path in paths]


def test_autoscaling_is_shown_and_changed(call: Callable[..., Any]) -> None:
    done = reply(sdk.UpdateAutoscalingSettingsResponse(status="QUEUED", message="Later."))
    answer, seen = answers(reply(deployment()), done, reply(deployment()))
    found = call(answer, "autoscaling", target=Target("abc123", "deployment", "dep1"), min_replica=1)
    # Baseten's values, not the requested ones.
    assert (found["min_replica"], found.answered, found.message) == (0, "QUEUED", "Later.")
    assert seen[1].url.path == "/v1/models/abc123/deployments/dep1/autoscaling_settings"
    assert sdk.UpdateAutoscalingSettings.model_validate_json(seen[1].content).min_replica == 1
    assert json.loads(seen[1].content) == {"min_replica": 1}


def test_autoscaling_of_an_environment_is_its_own_and_outlives_the_deployment(call: Callable[..., Any]) -> None:
    # By a change of the deployment alone, say: the next one that is promoted knows nothing of it.
    other = deployment().autoscaling_settings.model_copy(update={"scale_down_delay": 60})
    now = environment(current=deployment(autoscaling_settings=other))
    for target in (MODEL, Target("abc123", "regional", "production")):
        answer, seen = answers(reply(now), reply(now), changed())
        assert call(answer, "autoscaling", target=target)["scale_down_delay"] == 900
        found = call(answer, "autoscaling", target=target, min_replica=1)
        assert (found["min_replica"], found["scale_down_delay"], found.answered) == (0, 900, "ACCEPTED")
        assert (seen[2].method, seen[2].url.path) == ("PATCH", "/v1/models/abc123/environments/production")
        assert sdk.UpdateEnvironmentRequest.model_validate_json(seen[2].content).autoscaling_settings.min_replica == 1
        assert json.loads(seen[2].content) == {"autoscaling_settings": {"min_replica": 1}}


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas": 1},
        {"min_replica": "1"},
        {"min_replica": True},
        {"max_scale_down_rate": 51},
    ],
)
def test_a_bad_setting_is_refused_before_it_is_sent(call: Callable[..., Any], changes: dict[str, Any]) -> None:
    answer, seen = answers()
    with pytest.raises(fast_truss.InvalidInput, match=next(iter(changes))):
        call(answer, "autoscaling", **changes)
    assert seen == []


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "clé"])
def test_a_key_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("BASETEN_API_KEY", key)
    with pytest.raises(fast_truss.InvalidInput, match=r"BASETEN_API_KEY (is not set|contains spaces)"):
        Client(MODEL)


@pytest.mark.parametrize("model_id", ["", "../x", "a/b", "a b", "é", None])
def test_an_id_that_is_none_is_refused(model_id: Any) -> None:
    with pytest.raises(fast_truss.InvalidInput, match="model_id is"):
        Target(model_id)


@pytest.mark.parametrize("url", ["", "http://", "ftp://x", "http://[", "http://a b"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(fast_truss.InvalidInput, match="--url is"):
        route_to(MODEL, url)


def test_an_address_in_the_environment_may_be_empty_or_wrong(
    monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    for name in ("BASETEN_INFERENCE_URL", "BASETEN_MANAGEMENT_URL"):
        monkeypatch.setenv(name, "")
    assert route_to(MODEL, None).server == "https://model-abc123.api.baseten.co"
    assert route_to(MODEL, None).management == "https://api.baseten.co"
    monkeypatch.setenv("BASETEN_INFERENCE_URL", "htp://proxy")
    with pytest.raises(fast_truss.Unreachable, match=r"^htp://proxy cannot be reached: check the address"):
        Client(MODEL).generate("a boat")


def test_an_address_needs_no_scheme() -> None:
    assert route_to(MODEL, "127.0.0.1:8000/").server == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("url", "direct"),
    [
        ("http://127.0.0.1:8000", True),
        ("localhost:8000", True),
        ("http://[::1]:8000", True),
        ("http://192.168.1.7", True),
        ("https://example.com", False),
    ],
)
def test_local_addresses_never_go_through_a_proxy(monkeypatch: pytest.MonkeyPatch, url: str, direct: bool) -> None:
    # Port 9 is `discard`: nothing listens there.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    route = route_to(MODEL, url)
    host = httpx.URL(route.server)
    made = Reach(route, None).http
    assert (made._transport_for_url(host) is made._transport) is direct


def test_a_local_server_is_reached_past_a_proxy_and_a_silent_one_is_given_up(
    monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = []
        threading.Thread(target=lambda: accepted.append(listener.accept()[0]), daemon=True).start()
        made = Client(MODEL, url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(fast_truss.ConnectionLost, match="did not answer in time"):
            made.generate("a boat", timeout=0.2)
        assert accepted[0].recv(100).startswith(b"POST /v1/models/model:predict")
        accepted[0].close()


@contextlib.contextmanager
def dripping(head: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers with head, and then one byte at a time until the client leaves."""
    sent: list[bytes] = []

    def drip(server: socket.socket) -> None:
        with server.accept()[0] as connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(head)
            while len(sent) < 200:
                connection.sendall(b"x")
                sent.append(b"x")
                threading.Event().wait(0.05)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=[server])
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", sent
        thread.join()


HEADS = [b"HTTP/1.1 200 X\r\nA: ", *[b"HTTP/1.1 %d X\r\nContent-Length: 1000\r\n\r\n" % code for code in (200, 503)]]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", ["generate", "events"])
def test_an_answer_that_comes_in_drops_is_given_up(head: bytes, method: str) -> None:
    if method == "events":
        head = head.replace(b"\r\n\r\n", b"\r\nContent-Type: text/event-stream\r\n\r\n")
    with dripping(head) as (url, sent), pytest.raises(fast_truss.ConnectionLost, match="did not answer in time"):
        answer = getattr(Client(MODEL, url=url), method)("a boat", timeout=0.5)
        list(answer)
    assert len(sent) < 200  # it ended because the client left


@pytest.mark.parametrize("method", ["generate", "events"])
@pytest.mark.parametrize("in_block", [True, False])
def test_ctrl_c_ends_the_call_and_closes_the_connection(method: str, in_block: bool) -> None:
    def interrupt() -> None:
        while not sent:
            threading.Event().wait(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    head = b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\nContent-Type: text/event-stream\r\n\r\n"
    with dripping(head) as (url, sent):
        client = Client(MODEL, url=url)
        with client if in_block else contextlib.nullcontext(), pytest.raises(KeyboardInterrupt):
            threading.Thread(target=interrupt).start()
            list(getattr(client, method)("a boat"))
    assert len(sent) < 200


def test_the_client_works_inside_a_running_loop(slept: list[float]) -> None:
    answer, seen = answers(
        httpx.Response(200, json=IMAGE), streamed(told("queued", "result")), streamed(told("queued", "result"))
    )

    async def in_jupyter() -> None:
        client = Client(MODEL, transport=httpx.MockTransport(answer))
        assert client.generate("a boat") == IMAGE
        assert [event.kind for event in client.events("a boat")] == ["queued", "result"]
        with client:
            assert [event.kind for event in client.events("a boat")] == ["queued", "result"]

    asyncio.run(in_jupyter())
    assert len(seen) == 3


def test_a_client_can_be_used_by_threads_and_in_blocks(slept: list[float]) -> None:
    client = Client(MODEL, transport=httpx.MockTransport(lambda _: httpx.Response(200, json=IMAGE)))
    before = threading.active_count()
    for _ in range(2):
        with client, concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(client.generate, ["a boat"] * 32)) == [IMAGE] * 32
    assert client.generate("a boat") == IMAGE
    assert threading.active_count() == before


@pytest.mark.parametrize("made", [Client, AsyncClient])
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "gopher://127.0.0.1", "http://127.0.0.1:port"])
def test_a_proxy_that_cannot_be_used_is_a_sentence(monkeypatch: pytest.MonkeyPatch, made: Any, proxy: str) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # what SOCKS needs
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(fast_truss.InvalidInput, match="ALL_PROXY is invalid"):
        result = made(MODEL).status()
        asyncio.run(result) if inspect.isawaitable(result) else None


def test_certificates_that_are_not_there_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file")
    monkeypatch.setattr(transport, "_tls", transport._tls.__wrapped__)
    with pytest.raises(fast_truss.InvalidInput, match="SSL_CERT_FILE"):
        Client(MODEL).status()


def test_image_bytes_are_those_of_the_answer() -> None:
    assert fast_truss.image_bytes(IMAGE) == [b"hi"]
    for answer in ({}, {"images": []}, {"images": [{"image": "?"}]}, {"images": None}):
        with pytest.raises(fast_truss.UnexpectedAnswer, match="no image"):
            fast_truss.image_bytes(answer)


def test_the_library_is_imported_without_what_only_a_call_needs() -> None:
    code = (
        "import sys, fast_truss, fast_truss.cli; print(*{'anyio', 'baseten', 'httpx', 'pydantic'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=TEMPLATE, text=True).strip() == ""

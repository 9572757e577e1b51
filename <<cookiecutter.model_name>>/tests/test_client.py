"""The client's rules, on answers that are made here. No network, no waiting."""

import asyncio
import inspect
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import client
from client import AsyncClient, Client, ClientError, Target

KEY = "secret-key-123"
MODEL = Target("abc123")
DEPLOYMENT = {"id": "dep1", "status": "ACTIVE", "active_replica_count": 1, "autoscaling_settings": {"min_replica": 0}}
IMAGE = {"images": [{"image": "aGk=", "seed": 1}], "content_type": "image/png"}
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The key is set, and waiting takes no time. Returns the seconds that would have passed."""
    seconds: list[float] = []

    async def sleep(pause: float) -> None:
        seconds.append(pause)

    monkeypatch.setenv("BASETEN_API_KEY", KEY)
    monkeypatch.setattr(time, "sleep", seconds.append)
    monkeypatch.setattr(client.asyncio, "sleep", sleep)
    return seconds


@pytest.fixture(params=[Client, AsyncClient])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Call a method of either client; the transport gives the answers."""

    def _call(answer: Answer, method: str, *arguments: Any, target: Target = MODEL, **options: Any) -> Any:
        made = request.param(target, transport=httpx.MockTransport(answer))
        result = getattr(made, method)(*arguments, **options)
        return asyncio.run(result) if inspect.isawaitable(result) else result

    return _call


def answers(*responses: httpx.Response) -> tuple[Answer, list[httpx.Request]]:
    """Give the responses one after the other, and remember the requests."""
    left, seen = list(responses), []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return left.pop(0)

    return answer, seen


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (Target("m1"), "/production/wake"),
        (Target("m1", "environment", "staging"), "/environments/staging/wake"),
        (Target("m1", "deployment", "d1"), "/deployment/d1/wake"),
        (Target("m1", "development"), "/development/wake"),
    ],
)
def test_wake_returns_at_once(call: Callable[..., Any], slept: list[float], target: Target, path: str) -> None:
    answer, seen = answers(httpx.Response(202))
    assert call(answer, "wake", target=target) is None
    assert [(r.method, str(r.url)) for r in seen] == [("POST", f"https://model-m1.api.baseten.co{path}")]
    assert seen[0].headers["Authorization"] == f"Api-Key {KEY}"
    assert slept == []


def test_waiting_ends_when_a_replica_is_active(call: Callable[..., Any]) -> None:
    statuses = ["SCALED_TO_ZERO", "WAKING_UP", "LOADING_MODEL", "ACTIVE", "ACTIVE"]
    replicas = [0, 0, 0, 0, 1]
    answer, seen = answers(
        *[
            httpx.Response(200, json={"current_deployment": {**DEPLOYMENT, "status": s, "active_replica_count": n}})
            for s, n in zip(statuses, replicas, strict=True)
        ]
    )
    assert call(answer, "wait_until_ready").ready
    assert {str(r.url) for r in seen} == {"https://api.baseten.co/v1/models/abc123/environments/production"}
    assert len(seen) == 5


def test_a_wake_that_never_becomes_ready_ends_in_a_sentence(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    body = {"current_deployment": {**DEPLOYMENT, "status": "WAKING_UP", "active_replica_count": 0}}
    with pytest.raises(ClientError, match="still WAKING_UP after 5 s"):
        call(lambda _: httpx.Response(200, json=body), "wait_until_ready", 5)


def test_a_failed_deployment_ends_the_wait(call: Callable[..., Any]) -> None:
    body = {"current_deployment": {**DEPLOYMENT, "status": "FAILED"}}
    with pytest.raises(ClientError, match="is FAILED"):
        call(lambda _: httpx.Response(200, json=body), "wait_until_ready")


def test_generate_goes_through_a_cold_start(call: Callable[..., Any], slept: list[float]) -> None:
    answer, seen = answers(
        httpx.Response(500), httpx.Response(429, headers={"Retry-After": "7"}), httpx.Response(200, json=IMAGE)
    )
    assert call(answer, "generate", "a boat", seed=3) == IMAGE
    assert [json.loads(r.content) for r in seen] == [{"prompt": "a boat", "seed": 3}] * 3
    assert slept == [30.0, 7.0]


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("Wed, 01 Jan 2031 00:01:30 GMT", 90.0),
        ("Tue, 31 Dec 2030 23:59:00 GMT", client.POLL_SECONDS),
        *[
            (nonsense, 5.0)
            for nonsense in ("", "-1", "nan", "inf", "1e3", "\u0662", "9" * 400, "soon", "Wed, 99 Jan 2031")
        ],
    ],
)
def test_the_pause_is_what_the_answer_says(
    call: Callable[..., Any], slept: list[float], monkeypatch: pytest.MonkeyPatch, said: str, seconds: float
) -> None:
    start_of_2031 = 1924992000.0
    monkeypatch.setattr(time, "time", lambda: start_of_2031)
    answer, _ = answers(httpx.Response(429, headers={"Retry-After": said.encode()}), httpx.Response(200, json=IMAGE))
    assert call(answer, "generate", "a boat") == IMAGE
    assert slept == [seconds]


def test_generate_gives_up_in_a_sentence(call: Callable[..., Any]) -> None:
    with pytest.raises(ClientError, match=r"did not answer within 10 s\. The last answer was 500"):
        call(lambda _: httpx.Response(500), "generate", "a boat", timeout=10)


@pytest.mark.parametrize(
    ("code", "content", "sentence"),
    [
        (401, {}, "refused the key"),
        (403, {}, "refused the key"),
        (404, {}, "no such model or deployment, or it is deactivated"),
        (400, {"json": {"error": "`width` is bad"}}, "400: `width` is bad"),
        (200, {"content": b'{"images": ['}, "not whole"),
        (200, {"json": [1]}, "not whole"),
    ],
)
def test_a_bad_answer_is_one_sentence(
    call: Callable[..., Any], code: int, content: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ClientError, match=sentence) as caught:
        call(lambda _: httpx.Response(code, **content), "generate", "a boat")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (httpx.ConnectError("no"), "cannot be reached"),
        (httpx.ReadTimeout("no"), "did not answer in time"),
        (httpx.RemoteProtocolError("no"), "broke in the middle"),
    ],
)
def test_a_broken_network_is_one_sentence(call: Callable[..., Any], error: httpx.HTTPError, sentence: str) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(ClientError, match=sentence):
        call(fail, "generate", "a boat")


def test_autoscaling_is_shown_and_changed(call: Callable[..., Any]) -> None:
    body = {"current_deployment": DEPLOYMENT}
    assert call(lambda _: httpx.Response(200, json=body), "autoscaling") == {"min_replica": 0}
    answer, seen = answers(httpx.Response(200, json=body), httpx.Response(200, json={}))
    assert call(answer, "autoscaling", min_replica=1) == {"min_replica": 1}
    assert seen[1].url.path == "/v1/models/abc123/deployments/dep1/autoscaling_settings"
    assert json.loads(seen[1].content) == {"min_replica": 1}


@pytest.mark.parametrize(
    "changes", [{"replicas": 1}, {"min_replica": -1}, {"max_replica": 0}, {"min_replica": "1"}, {"min_replica": True}]
)
def test_a_bad_setting_is_refused_before_it_is_sent(call: Callable[..., Any], changes: dict[str, Any]) -> None:
    answer, seen = answers()
    with pytest.raises(ClientError, match=next(iter(changes))):
        call(answer, "autoscaling", **changes)
    assert seen == []


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "clé"])
def test_a_key_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("BASETEN_API_KEY", key)
    with pytest.raises(ClientError, match="BASETEN_API_KEY is not"):
        Client(MODEL)


@pytest.mark.parametrize("model_id", ["", "../x", "a/b", "a b", "é"])
def test_an_id_that_is_none_is_refused(model_id: str) -> None:
    with pytest.raises(ClientError, match="model_id is"):
        Target(model_id)

"""examples/backend.py: what wakes the model, what a request may hold, and whose fault an error is."""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from conftest import PROJECT, TEMPLATE
from fastapi.testclient import TestClient

from fast_truss import AsyncClient, Target, errors
from fast_truss.watcher import Watcher

EXAMPLES = PROJECT / "examples"
IMAGE = {"images": [{"image": "aGk=", "seed": 1}], "content_type": "image/png"}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module. Its model is a local server that does not listen."""
    monkeypatch.setenv("MODEL_URL", "http://127.0.0.1:9")
    spec = importlib.util.spec_from_file_location("backend", EXAMPLES / "backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Model:
    """A deployment, as its requests see it."""

    def __init__(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[httpx.Request] = []
        monkeypatch.setenv("BASETEN_API_KEY", "key")
        client = AsyncClient(Target("abc"), transport=httpx.MockTransport(self.answer))
        monkeypatch.setattr(module, "model", client)
        monkeypatch.setattr(module, "watcher", Watcher(client))

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if request.url.path.endswith("/wake"):
            return httpx.Response(202)
        if request.url.path.endswith("/predict"):
            known = {"prompt", "loras", "guidance_scale"}
            for name in set(json.loads(request.content)) - known:
                reason = {"error": f"`{name}`: Extra inputs are not permitted"}
                return httpx.Response(400, headers={"X-BASETEN-ERROR-SOURCE": "04"}, json=reason)
            return httpx.Response(200, json=IMAGE)
        deployment = {"id": "d1", "status": "ACTIVE", "active_replica_count": 1}
        return httpx.Response(200, json={"current_deployment": deployment})


@pytest.fixture
def model(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Model:
    return Model(backend, monkeypatch)


@pytest.fixture
def http(backend: ModuleType, model: Model) -> Iterator[TestClient]:
    with TestClient(backend.app) as client:
        yield client


def test_only_the_script_of_the_page_wakes_the_model(http: TestClient, model: Model) -> None:
    for path in ("/", "/", "/health", "/health", "/status"):
        assert http.get(path).status_code == 200
    assert http.head("/").status_code in (200, 405)
    assert 'fetch("wake", {method: "POST"})' in http.get("/").text
    assert model.seen == []
    assert http.get("/wake").status_code == 405
    assert http.post("/wake").status_code == 202
    lines = [line for line in http.get("/status").text.splitlines() if line]
    assert json.loads(lines[-1].removeprefix("data: ")) == {"kind": "ready", "words": "Ready"}
    assert [request.url.path for request in model.seen if request.method == "POST"] == ["/production/wake"]


def test_a_request_goes_through_as_it_is_and_a_bad_field_comes_back_as_the_model_s_400(
    http: TestClient, model: Model
) -> None:
    wish = {"prompt": "a boat", "loras": [{"name": "ink", "scale": 0.5}]}
    assert http.post("/generate", json=wish).json() == IMAGE
    assert json.loads(model.seen[-1].content) == wish
    refused = http.post("/generate", json={"prompt": "a boat", "color": 1, "self": 1})
    assert (refused.status_code, "Extra inputs" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "\\ud800"}',
        '{"prompt": "a boat", "\\ud800": 1}',
        '{"prompt": "a boat", "guidance_scale": NaN}',
        "NaN",
        "[NaN]",
        '"\\ud800"',
        "{",
        "",
        b"\xff",
        "[" * 100_000,
        '{"prompt": "a boat", "timeout": 9}',
        '{"prompt": "a boat", "stream": true}',
    ],
)
def test_what_cannot_be_a_request_is_a_400_and_is_not_sent(http: TestClient, model: Model, body: Any) -> None:
    refused = http.post("/generate", content=body)
    assert refused.status_code == 400
    assert refused.json()["error"].endswith(".")
    assert model.seen == []


def test_a_page_that_is_opened_while_the_server_starts_waits_for_it(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(_: float) -> None:
        await real(0)

    real = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", sleep)
    listens = threading.Event()

    def answer(_: httpx.Request) -> httpx.Response:
        if not listens.is_set():
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={})

    client = AsyncClient(Target("local"), url="http://127.0.0.1:9", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(backend, "watcher", Watcher(client))

    async def visit() -> list[dict[str, str]]:
        backend.watcher.start()
        told = []
        async for event in backend.events():
            told.append(json.loads(event.removeprefix("data: ")))
            if sum(each["words"].startswith("The model does not start") for each in told) == 2:
                listens.set()
        return told

    told = asyncio.run(asyncio.wait_for(visit(), 30))
    assert told[-1] == {"kind": "ready", "words": "Ready"}
    assert {each["kind"] for each in told[:-1]} == {"waking"}
    assert "refused" not in str(told)


@pytest.mark.parametrize(
    ("error", "status", "is_told"),
    [
        (errors.RequestRefused("width: too small", 400), 400, True),
        (errors.RequestRefused("too large", 413), 413, True),
        (errors.InvalidInput("no JSON"), 400, True),
        # Baseten refuses what this backend did.
        (errors.RequestRefused("secret words", 405), 502, False),
        (errors.KeyRefused("secret words", 401), 502, False),
        (errors.NotFound("secret words", 404), 502, False),
        (errors.ModelFailed("secret words", 500), 502, False),
        (errors.DeploymentFailed("secret words"), 502, False),
        (errors.UnexpectedAnswer("secret words"), 502, False),
        (errors.Unavailable("secret words", 429, 7.0), 503, False),
        (errors.ConnectionLost("secret words"), 503, False),
        (errors.TimedOut("secret words"), 503, False),
    ],
)
def test_a_visitor_s_fault_is_told_and_ours_is_logged(
    backend: ModuleType, error: errors.ClientError, status: int, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    answer = asyncio.run(backend.tell(None, error))
    assert answer.status_code == status
    assert (json.loads(answer.body)["error"] == str(error)) == is_told
    assert (str(error) in caplog.text) != is_told
    assert ("retry-after" in answer.headers) == (status == 503)


def start(environment: dict[str, str], log: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "backend:app", "--port", "0"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("BASETEN_", "MODEL_URL"))}
    with log.open("w") as output:
        options = {"env": {**clean, "PYTHONPATH": str(TEMPLATE), **environment}, "stdout": output, "stderr": output}
        return subprocess.Popen(command, **options)


def test_it_starts_as_its_first_lines_say(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start({"MODEL_URL": "http://127.0.0.1:9"}, log)
    try:
        for _ in range(600):
            if "Uvicorn running on" in log.read_text() or process.poll() is not None:
                break
            time.sleep(0.1)
        address = log.read_text().partition("Uvicorn running on ")[2].split()[0]
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [({}, "BASETEN_MODEL_ID, or MODEL_URL. "), ({"BASETEN_MODEL_ID": "abc"}, "BASETEN_API_KEY is not set")],
)
def test_without_a_model_it_ends_in_a_sentence(tmp_path: Path, environment: dict[str, str], sentence: str) -> None:
    process = start(environment, tmp_path / "log")
    assert process.wait(timeout=60) == 1
    told = (tmp_path / "log").read_text()
    assert sentence in told.strip().splitlines()[-1]
    assert "Traceback" not in told

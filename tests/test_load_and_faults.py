"""The emitted server under load, and when clients, memory, the device or the platform let it down."""

import contextlib
import http.client
import json
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from conftest import ALL
from httpx_sse import EventSource
from platforms import PROJECT_PYTHON, SMALL
from serving import PREDICT, READY, Server, Serving

CLIENTS = 16
# Requests per client, at each predict_concurrency: 16 x 200 in all with `make test-all`.
WARM_UP_REQUESTS = 20
REQUESTS = 80 if ALL else 30
pytestmark = [
    pytest.mark.skipif(PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` names it"),
]

# Steps and formats differ, so that requests which shared a scheduler, or got each other's answer, would show it.
VALID = [
    {"seed": i, "num_inference_steps": 1 + i % 3, "output_format": ("png", "jpeg", "webp")[i // 3]} for i in range(9)
]
# Others than those above, and among them.
VALID += [{"seed": i, "num_inference_steps": 2, "stream": True} for i in (9, 10)]
# Each has an error of its own. Three of four, as they take the least time.
INVALID = [{"width": 1}, {"seed": -1}, {"prompt": None}, *({f"unknown_{i}": i} for i in range(24))]
BODIES = [*VALID, *INVALID]


def answers(server: Server, numbers: Sequence[int]) -> list[tuple[int, Any]]:
    """Send the bodies with these numbers over one connection. Returns the status and what does not vary of each."""
    # A light client: 16 of them share the machine with the server.
    connection = http.client.HTTPConnection("127.0.0.1", server.http.base_url.port, timeout=120)
    with contextlib.closing(connection):
        found = []
        for number in numbers:
            connection.request("POST", PREDICT, json.dumps({**SMALL, **BODIES[number]}))
            response = connection.getresponse()
            # The last event of a stream.
            text = response.read().decode().rstrip("\n").rpartition("\ndata: ")[2]
            content = json.loads(text)
            found.append((response.status, content.get("images") or content["error"]))
        return found


def load(server: Server, requests: int, expected: list[tuple[int, Any]]) -> int:
    """Send requests from each client at once, and require every answer. Returns the server's memory afterwards."""
    orders = [random.Random(client).choices(range(len(BODIES)), k=requests) for client in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(lambda order: answers(server, order), orders))
    pairs = [pair for order, got in zip(orders, found, strict=True) for pair in zip(order, got, strict=True)]
    assert [number for number, answer in pairs if answer != expected[number]] == []
    return psutil.Process(server.process.pid).memory_info().rss


@pytest.mark.parametrize("predict_concurrency", [1, 2])
def test_under_load_each_answer_is_the_one_made_alone_and_memory_is_flat(
    serving: Serving, tmp_path: Path, predict_concurrency: int
) -> None:
    with serving.start(serving.copy(tmp_path, predict_concurrency)) as server:
        expected = answers(server, range(len(BODIES)))
        assert [status for status, _ in expected] == [200] * len(VALID) + [400] * len(INVALID)
        assert len({str(content) for _, content in expected}) == len(BODIES)
        warm = load(server, WARM_UP_REQUESTS, expected)
        assert load(server, REQUESTS, expected) < 1.05 * warm


@pytest.fixture(scope="module")
def faulty(measured: None, serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving.start(serving.copy(tmp_path_factory.mktemp("faulty"), faulty=True)) as server:
        yield server


def test_a_client_that_leaves_stops_the_work(faulty: Server) -> None:
    body = httpx.Request("POST", faulty.http.base_url, json={**SMALL, "prompt": "slow", "num_inference_steps": 100})
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body.content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", faulty.http.base_url.port)) as client:
        client.sendall(head.encode() + body.content)
        faulty.wait_for_log("slow step 2")
    # Requests come one after the other: this one is answered once the other has ended.
    assert faulty.predict().status_code == 200
    log = faulty.log.read_text()
    (line,) = [line for line in log.splitlines() if "The client disconnected." in line]
    assert "Answered 499" in line
    assert "Traceback" not in log
    assert "slow step 90" not in log


def events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """Yield the events of an open answer, as they come."""
    for each in EventSource(response).iter_sse():
        yield each.event, each.data if each.event == "image" else each.json()


def test_a_client_that_leaves_a_stream_stops_the_work(faulty: Server) -> None:
    already = len(faulty.log.read_text())
    body = {**SMALL, "prompt": "slow", "num_inference_steps": 100, "stream": True}
    with faulty.http.stream("POST", PREDICT, json=body) as response:
        found = events(response)
        assert next(found) == ("queued", {})
        name, data = next(found)
        assert (name, data["step"], data["image"]) == ("step", 1, 1)
        # The event loop is free meanwhile.
        assert faulty.ready() == 200
    assert faulty.predict().status_code == 200
    log = faulty.log.read_text()[already:]
    (line,) = [line for line in log.splitlines() if "The client disconnected." in line]
    assert "Answered 499" in line
    assert "Traceback" not in log
    # Not a second later, as without a stream.
    assert "slow step 20" not in log


def test_a_stream_that_waits_is_told_so_and_left_in_peace(faulty: Server) -> None:
    already = len(faulty.log.read_text())
    slow = {**SMALL, "prompt": "slow", "num_inference_steps": 100, "stream": True}
    with faulty.http.stream("POST", PREDICT, json=slow) as first:
        in_first = events(first)
        assert [next(in_first)[0] for _ in range(2)] == ["queued", "step"]
        # Its predict_concurrency is 1.
        with faulty.http.stream("POST", PREDICT, json={**slow, "prompt": "behind"}) as behind:
            assert next(events(behind))[0] == "queued"
        # That one left before its turn, and this one has its turn next.
        with faulty.http.stream("POST", PREDICT, json={**SMALL, "stream": True}) as last:
            in_last = events(last)
            assert next(in_last)[0] == "queued"
            first.close()
            assert [name for name, _ in in_last][-1] == "result"
    for _ in range(1200):
        log = faulty.log.read_text()[already:]
        if log.count("The client disconnected.") == 2:
            break
        time.sleep(0.05)
    assert log.count("The client disconnected.") == 2
    assert "Traceback" not in log


@pytest.mark.parametrize(("prompt", "status"), [("memory", 503), ("device", 500)])
def test_a_fault_in_a_stream_is_an_event_with_the_sentence_of_a_plain_answer(
    faulty: Server, prompt: str, status: int
) -> None:
    plain = faulty.predict(prompt=prompt)
    streamed = faulty.predict(prompt=prompt, stream=True)
    assert (plain.status_code, streamed.status_code) == (status, 200)
    (first, _), *steps, (last, data) = events(streamed)
    assert (first, last) == ("queued", "error")
    assert {name for name, _ in steps} <= {"step"}
    assert data == {"error": plain.json()["error"], "status": status}
    assert faulty.predict().status_code == 200
    assert faulty.ready() == 200


def test_who_reads_slowly_holds_nobody_up(faulty: Server) -> None:
    # More than the buffers between the two can hold.
    large = {**SMALL, "width": 768, "height": 768, "num_images": 4, "stream": True}
    body = httpx.Request("POST", faulty.http.base_url, json=large)
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body.content)}\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", faulty.http.base_url.port))
        client.sendall(head.encode() + body.content)
        # It has begun, and no more is read.
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert faulty.predict().status_code == 200
        assert faulty.predict(stream=True).status_code == 200


def test_out_of_memory_is_said_and_the_next_request_works(faulty: Server) -> None:
    before = faulty.predict(num_inference_steps=3).json()["images"]
    response = faulty.predict(prompt="memory", num_inference_steps=3)
    assert response.status_code == 503
    assert "too little memory" in response.json()["error"]
    assert faulty.ready() == 200
    assert faulty.predict(num_inference_steps=3).json()["images"] == before


def test_a_failed_device_is_not_healthy_until_it_makes_an_image(faulty: Server) -> None:
    assert faulty.predict(prompt="device").status_code == 500
    assert faulty.ready() == 503
    # A refused request proves nothing about the device.
    assert faulty.predict(width=1).status_code == 400
    assert faulty.ready() == 503
    assert faulty.predict().status_code == 200
    assert faulty.ready() == 200


def test_sigterm_lets_the_answer_be_finished(serving: Serving, tmp_path: Path) -> None:
    with serving.start(serving.copy(tmp_path, faulty=True)) as server, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(server.predict, prompt="slow", num_inference_steps=9)
        server.wait_for_log("slow step 2")
        server.process.terminate()
        assert len(busy.result().json()["images"]) == 1
        # Truss's uvicorn raises the signal again when all is done, so the exit code is not 0.
        assert server.process.wait(60) == -signal.SIGTERM
        assert re.search(r"Shutting down.*slow step 8", server.log.read_text(), re.DOTALL)


@pytest.mark.parametrize("broken", [False, True])
def test_the_server_is_ready_when_load_is_done_and_not_before(serving: Serving, tmp_path: Path, broken: bool) -> None:
    app = serving.copy(tmp_path, faulty=True)
    (app / "hold").touch()
    if broken:
        (app / "broken").touch()
    with serving.start(app, wait=False) as server:
        server.wait_for_log("Uvicorn running")
        answers = [server.http.get(READY), server.http.get(f"{READY}/loaded"), server.predict()]
        assert [response.status_code for response in answers] == [503] * 3
        (app / "hold").unlink()
        if broken:
            # Truss ends the server, so that the platform starts another one.
            assert statuses_until_the_end(server) <= {503}
            log = server.log.read_text()
            assert "load() is broken." in log
            # How far it came, and how long that took. Truss tries load() again once.
            lines = [line for line in log.splitlines() if '"event' in line and "cold_start" in line]
            assert "import_diffusers" in lines[0]
            assert not any("first_image" in line for line in lines)
            return
        server.wait_for_log("Completed model.load()")
        serving.local_server.wait_until_ready(server.process, str(server.http.base_url))
        assert server.ready() == 200


def test_the_server_stops_with_a_sentence_when_a_weight_file_is_missing(serving: Serving, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(serving.weights, weights)
    file = min(weights.glob("*/*/*.safetensors"))
    file.unlink()
    with serving.start(serving.copy(tmp_path, weights_dir=str(weights)), wait=False) as server:
        server.process.wait(timeout=300)
        said = serving.local_server.SENTENCE.findall(server.log.read_text())
    # A pattern such as transformer/* does not say that it needs weights: then the library that reads them does.
    assert file.parent.name in said[-1]
    assert re.search("is missing from|cannot be read from", said[-1])


def statuses_until_the_end(server: Server) -> set[int]:
    found = set()
    for _ in range(1200):
        try:
            found.add(server.ready())
        except httpx.TransportError:
            break
    server.process.wait(60)
    return found

"""A stream tells the steps that really run, of every family, and its answer is the one without. Stages are timed."""

import asyncio
import base64
import contextlib
import functools
import io
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import FAMILIES, Make, Served
from fastapi import HTTPException
from PIL import Image
from pydantic import ValidationError


async def sent(response: Any, leave: Callable[[bytes], bool] = lambda _: False) -> bytes:
    """Return what the response sends. leave: whether its client is gone after this part."""
    parts, gone = [], asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        parts.append(message.get("body", b""))
        if leave(parts[-1]):
            gone.set()

    await response({"type": "http"}, receive, send)
    return b"".join(parts)


def told(served: Served, **body: Any) -> list[tuple[str, Any]]:
    """Return the events of a request. Those of images become part of the result."""
    text = asyncio.run(sent(served.ask(**body, stream=True))).decode()
    assert max(map(len, text.split("\n"))) < 2**16  # what readers of lines take
    *blocks, end = text.split("\n\n")
    assert end == ""
    found: list[tuple[str, Any]] = []
    images = []
    for name, *data in (block.split("\n") for block in blocks):
        assert name.startswith("event: ")
        assert all(line.startswith("data: ") for line in data)
        lines = [line.removeprefix("data: ") for line in data]
        if name == "event: image":
            images.append("".join(lines))
        else:
            found.append((name.removeprefix("event: "), json.loads(*lines)))
    if images:
        result = found[-1][1]
        result["images"] = [{**each, "image": image} for each, image in zip(result["images"], images, strict=True)]
    return found


def counted(served: Served, patch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each step of the scheduler."""
    kind, steps = type(served.model._scheduler), []
    true = kind.step

    @functools.wraps(true)  # the pipelines look for generator in its signature
    def step(*arguments: Any, **more: Any) -> Any:
        steps.append(1)
        return true(*arguments, **more)

    patch.setattr(kind, "step", step)
    return steps


def slow(owner: Any, name: str, seconds: float, patch: pytest.MonkeyPatch) -> None:
    true = getattr(owner, name)

    def call(*arguments: Any, **more: Any) -> Any:
        time.sleep(seconds)
        return true(*arguments, **more)

    patch.setattr(owner, name, call)


@pytest.mark.parametrize("preset", FAMILIES)
def test_the_steps_that_are_told_are_those_that_run_and_the_result_is_the_plain_answer(
    preset: str, settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(settings_of(preset))
    steps = counted(served, monkeypatch)
    bodies: list[dict[str, Any]] = [
        {"num_images": 2},
        {"num_inference_steps": min(5, served.settings.limits.max_steps)},
    ]
    if served.settings.image_to_image:
        start = served.image()
        most = min(10, served.settings.limits.max_steps)
        bodies += [{"image": start, "strength": strength, "num_inference_steps": most} for strength in (0.5, 1.0)]
    counts = []
    for body in bodies:
        plain = served.ask(**body).model_dump(mode="json")
        steps.clear()
        (first, nothing), *between, (last, result) = told(served, **body)
        assert (first, nothing, last) == ("queued", {}, "result")
        assert {name for name, _ in between} == {"step"}
        images = body.get("num_images", 1)
        count = len(steps) // images
        place = [(data["image"], data["step"], data["of"]) for _, data in between]
        assert place == [(image + 1, step + 1, count) for image in range(images) for step in range(count)], body
        seconds = [data["seconds"] for _, data in between]
        assert seconds[0] > 0
        assert seconds == sorted(seconds)
        assert set(result["timings"]) == set(plain["timings"])
        for answer in (plain, result):
            del answer["timings"]
        assert result == plain
        counts.append(count)
    if served.settings.image_to_image and not served.settings.limits.max_steps_per_strength:
        assert counts[2] < counts[3]


@pytest.mark.parametrize("preset", FAMILIES)
def test_each_stage_has_its_own_seconds(
    preset: str, settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model import progress

    served = serve(settings_of(preset))
    start = served.image()
    parts = served.pipeline.components
    clock, calls = [0], {"text": 0, "steps": 0, "decode": 0}
    # A clock that only these move, each by what no other can.
    seconds = {"text": 1, "steps": 1000, "decode": 1000_000}

    def moves(owner: Any, name: str, stage: str) -> None:
        true = getattr(owner, name)

        def call(*arguments: Any, **more: Any) -> Any:
            clock[0] += seconds[stage]
            calls[stage] += 1
            return true(*arguments, **more)

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: float(clock[0])))
    for name, part in parts.items():
        if name.startswith("text_encoder") and part is not None:
            moves(part, "forward", "text")
    moves(served.pipeline.vae, "encode", "text")
    moves(parts.get("unet") or parts["transformer"], "forward", "steps")
    moves(served.pipeline.vae, "decode", "decode")
    for body in ({"num_images": 2}, {"image": start, "strength": 1.0}):
        if "image" in body and served.settings.image_to_image is None:
            continue
        calls.update(dict.fromkeys(calls, 0))
        timings = served.ask(**body).timings
        assert all(calls.values())
        assert {stage: getattr(timings, stage) for stage in calls} == {
            stage: calls[stage] * seconds[stage] for stage in calls
        }


def test_a_client_that_leaves_ends_the_work_and_its_thread(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(settings_of("sd15"))
    usual = served.image()
    steps = counted(served, monkeypatch)
    slow(served.pipeline.unet, "forward", 0.05, monkeypatch)
    response = served.ask(stream=True, num_inference_steps=50)
    # asyncio.run() waits for the thread.
    text = asyncio.run(sent(response, leave=lambda part: b'"step": 2' in part)).decode()
    assert "result" not in text
    assert 2 <= len(steps) < 25
    assert served.image() == usual


def test_a_client_that_leaves_before_its_turn_costs_no_step(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model import progress

    served = serve(settings_of("sd15"))
    steps = counted(served, monkeypatch)
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.05)

    async def ask_and_leave() -> None:
        over = threading.Event()
        served.model._guard.submit(over.wait)  # as a request before it
        await sent(served.ask(stream=True), leave=lambda part: b"still there" in part)
        over.set()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

    asyncio.run(ask_and_leave())
    assert steps == []
    assert served.image()


def test_who_asks_first_is_served_first_however_many_wait(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    # asyncio.to_thread has few threads.
    served, order = serve(settings_of("sd15")), []
    monkeypatch.setattr(
        served.model, "_generate", lambda asked, seed, progress: order.append(seed) or Image.new("L", (8, 8))
    )

    async def ask() -> list[bytes]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        over = threading.Event()
        served.model._guard.submit(over.wait)
        streams = [asyncio.create_task(sent(served.ask(stream=True, seed=seed))) for seed in range(45)]
        waiting = served.model._guard._thread._work_queue.qsize
        with ThreadPoolExecutor() as other:
            while waiting() < 45:
                await asyncio.sleep(0.01)
            plain = other.submit(served.ask, seed=45)
            while waiting() < 46:
                await asyncio.sleep(0.01)
            streams.append(asyncio.create_task(sent(served.ask(stream=True, seed=46))))
            await asyncio.sleep(0.2)
            over.set()
            answers = await asyncio.gather(*streams)
            assert plain.result().timings.wait >= 0.2
            return answers

    answers = asyncio.run(ask())
    assert order == list(range(47))
    waits = [json.loads(answer.split(b"data: ")[-1])["timings"]["wait"] for answer in answers]
    assert min(waits) >= 0.2


def test_metrics_count_each_request_by_its_status(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    from metrics import REQUESTS, SECONDS
    from test_faults import fail_once

    served = serve(settings_of("sd15"))

    def counts() -> dict[str, float]:
        ended = [each for each in REQUESTS.collect()[0].samples if each.name == "image_requests_total"]
        found = {each.labels["status"]: each.value for each in ended}
        (seconds,) = (each.value for each in SECONDS.collect()[0].samples if each.name.endswith("_count"))
        return {**found, "seconds": seconds}

    def counted_by(ask: Callable[[], Any]) -> dict[str, float]:
        before = counts()
        with contextlib.suppress(ValidationError, HTTPException, ValueError):
            ask()
        return {name: value - before.get(name, 0) for name, value in counts().items() if value != before.get(name, 0)}

    assert counted_by(served.ask) == counted_by(lambda: told(served)) == {"200": 1, "seconds": 1}
    assert counted_by(lambda: served.request.parse_raw(b'{"prompt": "x", "width": 1}')) == {"400": 1}
    assert counted_by(lambda: served.request.parse_raw(b"x" * 20_000_000)) == {"413": 1}
    assert counted_by(lambda: served.request.parse_obj({"prompt": "x", "image": "A" * 30_000_000})) == {"413": 1}
    whole = served.image()
    assert counted_by(lambda: served.ask(image=whole[: len(whole) // 8 * 4], strength=0.5)) == {"400": 1}
    for ask in (served.ask, lambda: told(served)):
        with monkeypatch.context() as patch:
            fail_once(served.pipeline.unet, "forward", 2, None, patch)
            assert counted_by(ask) == {"500": 1}
    assert counted_by(lambda: asyncio.run(sent(served.ask(stream=True), leave=bool))) == {"499": 1}


def test_no_line_of_a_stream_is_longer_than_readers_take(settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of("sd15"))
    served.model._generate = lambda *_: Image.effect_noise((512, 512), 100)
    (_, result) = told(served)[-1]
    assert len(result["images"][0]["image"]) > 2**17
    assert Image.open(io.BytesIO(base64.b64decode(result["images"][0]["image"], validate=True))).size == (512, 512)


def test_a_long_wait_is_not_silent(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model import progress

    served = serve(settings_of("sd15"))
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.02)
    slow(served.pipeline.unet, "forward", 0.2, monkeypatch)
    blocks = asyncio.run(sent(served.ask(stream=True, num_inference_steps=1))).decode().split("\n\n")
    assert blocks.count(": still there") >= 2
    # Between events, and never within one.
    assert all(block.startswith(("event: ", ": still there")) for block in blocks[:-1])


def test_what_is_refused_is_refused_before_the_first_event(settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of("sd15"))
    whole = served.image()
    for stream in (False, True):
        response = served.ask(stream=stream, image=whole[: len(whole) // 8 * 4], strength=1.0)
        assert response.status_code == 400
        assert b"`image`" in response.body


@pytest.mark.parametrize("fault", [ValueError("The test asked for it."), None], ids=["ordinary", "NaN"])
def test_a_fault_is_an_event_and_counts_as_without_a_stream(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    from test_faults import fail_once

    served = serve(settings_of("sd15"))
    usual = served.image()
    for _ in range(3):
        with monkeypatch.context() as patch:
            fail_once(served.pipeline.unet, "forward", 2, fault, patch)
            *_, (name, data) = told(served)
        assert (name, data["status"]) == ("error", 500)
        words = "(in model/chainlet)" if fault else "NaN"
        assert words in data["error"]
        assert "asked" not in data["error"]
    assert served.healthy()
    assert served.image() == usual

"""The gateway with OpenAI's own client: most of it in front of a client that is made here, the rest of the platform."""

import asyncio
import base64
import contextlib
import io
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from PIL import Image, ImageFile
from platforms import PROJECT_PYTHON, Platform
from starlette.testclient import TestClient
from typer.testing import CliRunner

from fast_truss import Event, InvalidInput, Target, cli, errors, gateway

KEY = "gateway-key"


def image(mode: str = "RGB", size: tuple[int, int] = (8, 4), color: Any = 0, kind: str = "PNG", **saved: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, kind, **saved)
    return buffer.getvalue()


def clear_mask(size: tuple[int, int] = (8, 4)) -> bytes:
    """Opaque, but for the pixel in the upper left corner, and half so in the next."""
    buffer = io.BytesIO()
    made = Image.new("RGBA", size, (255, 255, 255, 255))
    made.putpixel((0, 0), (255, 255, 255, 0))
    made.putpixel((1, 0), (255, 255, 255, 128))
    made.save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = image()


class Model:
    """Replaces AsyncClient: records requests, and returns prepared answers."""

    target = Target("abc123")

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.failures: list[Exception] = []
        self.ended = threading.Event()
        self.hangs = False

    async def __aenter__(self) -> "Model":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def events(self, prompt: str, timeout: float, **request: Any) -> AsyncIterator[Event]:
        self.asked.append({"prompt": prompt, "timeout": timeout, **request})
        try:
            if self.failures:
                raise self.failures.pop(0)
            yield Event("queued", {})
            while self.hangs:
                await asyncio.sleep(0.01)
            yield Event("step", {"image": 1, "step": 1, "of": 2, "seconds": 0.1})
            kind, seed = request.get("output_format", "png"), request.get("seed", 7)
            made = base64.b64encode(IMAGE).decode()
            images = [{"image": made, "seed": seed + each} for each in range(request.get("num_images", 1))]
            yield Event("result", {"images": images, "content_type": f"image/{kind}", "warnings": ["one"]})
        finally:
            self.ended.set()


@contextlib.contextmanager
def served(model: Model, key: str = KEY, seconds: float = 900.0) -> Iterator[str]:
    app = gateway.application(model, key, seconds)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for _ in range(500):
            if server.started:
                break
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Model, str]]:
    model = Model()
    with served(model) as url:
        yield model, url


@pytest.fixture
def model(shared: tuple[Model, str]) -> Model:
    shared[0].__init__()
    return shared[0]


@pytest.fixture
def client(shared: tuple[Model, str], model: Model) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{shared[1]}/v1", max_retries=0) as made:
        yield made


def test_what_openai_names_goes_to_the_model_by_its_own_names(client: openai.OpenAI, model: Model) -> None:
    answer = client.images.generate(
        model="gpt-image-2",
        prompt="a boat",
        n=2,
        size="256x128",
        output_format="webp",
        output_compression=80,
        response_format="b64_json",
        user="someone",
        safety_identifier="1",
        quality="auto",
        background="opaque",
        moderation="auto",
        extra_body={"seed": 3, "num_inference_steps": 4, "loras": [{"name": "style"}]},
    )
    (asked,) = model.asked
    # Of openai's 600 s it leaves some for the way.
    assert asked.pop("timeout") == 588.0
    assert asked == {
        "prompt": "a boat",
        "num_images": 2,
        "width": 256,
        "height": 128,
        "output_format": "webp",
        "quality": 80,
        "seed": 3,
        "num_inference_steps": 4,
        "loras": [{"name": "style"}],
    }
    assert [base64.b64decode(image.b64_json) for image in answer.data] == [IMAGE] * 2
    assert [image.seed for image in answer.data] == [3, 4]
    assert (answer.size, answer.output_format, answer.background) == ("256x128", "webp", "opaque")
    assert answer.warnings == ["one"]


def test_what_is_left_out_is_the_model_s(client: openai.OpenAI, model: Model) -> None:
    answer = client.with_options(timeout=20).images.generate(prompt="a boat", size="auto")
    assert model.asked == [{"prompt": "a boat", "timeout": 19.6}]
    assert answer.size == "auto"


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"size": "big"}, "size"),
        ({"size": "64x64x64"}, "size"),
        ({"size": "\u0661\u0662x64"}, "size"),
        ({"response_format": "url"}, "response_format"),
        ({"quality": "hd"}, "quality"),
        ({"style": "vivid"}, "style"),
        ({"background": "transparent"}, "background"),
        ({"moderation": "low"}, "moderation"),
        ({"extra_body": {"stream": "yes"}}, "stream"),
        ({"n": 1, "extra_body": {"num_images": 2}}, "n"),
        ({"size": "64x64", "extra_body": {"width": 128}}, "size"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_what_it_cannot_do_is_named_and_asks_nothing(
    client: openai.OpenAI, model: Model, parameters: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=param) as caught:
        client.images.generate(**{"prompt": "a boat", **parameters})
    assert (caught.value.param, caught.value.type, caught.value.status_code) == (param, "invalid_request_error", 400)
    assert model.asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'"x"',
        b"[" * 100_000,
        b"\xff",
        b'{"prompt": "a boat", "timeout": 5}',
        b'{"prompt": "x", "self": 1}',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(shared: tuple[Model, str], body: bytes) -> None:
    answer = httpx.post(f"{shared[1]}/v1/images/generations", content=body, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (errors.RequestRefused("(400: `width`: Input should be a multiple of 8).", 400), 400, {"param": "size"}),
        (errors.RequestRefused("(400: `num_images`: less).", 400), 400, {"param": "n"}),
        (errors.RequestRefused("(422: `strength`: less).", 422), 400, {"param": "strength"}),
        (errors.RequestRefused("too large", 413), 413, {"param": None}),
        (errors.InvalidInput("no JSON"), 400, {"type": "invalid_request_error"}),
        (errors.NotFound("deactivated", 404), 404, {"code": "not_found"}),
        (errors.DeploymentFailed("The deployment is FAILED."), 404, {"code": "not_found"}),
        (errors.RequestRefused("not allowed", 405), 500, {"type": "server_error"}),
        (errors.KeyRefused("Baseten refused the key", 401), 500, {"type": "server_error"}),
        (errors.ModelFailed("it failed", 500), 500, {"type": "server_error"}),
        (errors.UnexpectedAnswer("no image"), 500, {"type": "server_error"}),
        (RuntimeError("secret words"), 500, {"message": "The gateway failed."}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_that_stays_is_told_once(
    client: openai.OpenAI, model: Model, error: Exception, status: int, expected: dict[str, Any], stream: bool
) -> None:
    model.failures = [error] * 2
    with pytest.raises(openai.APIStatusError) as caught:
        client.with_options(max_retries=1).images.generate(prompt="a boat", stream=stream)
    assert caught.value.status_code == status
    assert expected.items() <= caught.value.body.items()
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.TimedOut("There was no answer within 595 s."), 504),
        (errors.TimedOut("The server asks to wait.", 429, 0.2), 503),
        (errors.Unavailable("busy", 429, 0.2), 503),
        (errors.ConnectionLost("broke"), 504),
    ],
)
def test_an_error_that_passes_is_tried_again(
    client: openai.OpenAI, model: Model, error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.failures = [error]
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt="a boat")
    assert caught.value.status_code == status
    waits = None if status == 504 else "1"
    assert caught.value.response.headers.get("Retry-After") == waits
    model.failures = [error]
    paused: list[float] = []
    monkeypatch.setattr(openai._base_client.time, "sleep", paused.append)
    assert client.with_options(max_retries=1).images.generate(prompt="a boat").data
    assert len(paused) == 1
    assert len(model.asked) == 3


def test_a_stream_has_an_event_for_each_finished_image(client: openai.OpenAI, model: Model) -> None:
    with client.images.generate(prompt="a boat", n=2, size="64x32", stream=True, partial_images=2) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert [event.seed for event in events] == [7, 8]
    for event in events:
        assert base64.b64decode(event.b64_json) == IMAGE
        # What openai's types promise.
        type(event).model_validate(event.model_dump(), strict=True)
        assert (event.size, event.output_format) == ("64x32", "png")
    # Each part of a stream renews what openai waits for.
    assert model.asked[0]["timeout"] == 900.0


def test_a_stream_is_never_silent(shared: tuple[Model, str], model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "TICK_SECONDS", 0.05)
    model.hangs = True
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"prompt": "a boat", "stream": True}
    with httpx.stream("POST", f"{shared[1]}/v1/images/generations", json=body, headers=headers) as answer:
        lines = answer.iter_lines()
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        seen = [next(lines) for _ in range(5)]
        assert seen == [": queued {}", ""] * 2 + [": queued {}"]
        model.hangs = False
        rest = list(lines)
    assert sum(line.startswith("data:") for line in rest) == 1


def test_an_error_after_the_first_event_of_a_stream_is_raised(
    client: openai.OpenAI, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def events(**_: Any) -> AsyncIterator[Event]:
        yield Event("queued", {})
        await asyncio.sleep(0.2)
        raise errors.ModelFailed("The model failed (500).", 500)

    monkeypatch.setattr(gateway, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(model, "events", events, raising=False)
    with client.images.generate(prompt="a boat", stream=True) as stream, pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.message == "The model failed (500)."
    assert caught.value.type == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_ends_the_work(client: openai.OpenAI, model: Model, stream: bool) -> None:
    model.hangs = True
    asks = client.with_options(timeout=0.3).images
    with contextlib.suppress(openai.APITimeoutError), asks.generate(prompt="a boat", stream=stream):
        pass
    assert model.ended.wait(10)


def edit_asked(client: openai.OpenAI, asked_model: Model, **parameters: Any) -> dict[str, Any]:
    client.images.edit(prompt="a boat", **parameters)
    (asked,) = asked_model.asked
    return asked


def test_an_edit_sends_the_files_and_the_types_of_the_model(client: openai.OpenAI, model: Model) -> None:
    extra = {"strength": 0.5, "seed": 3, "negative_prompt": "12", "loras": '[{"name": "style"}]'}
    asked = edit_asked(client, model, image=IMAGE, n=2, size="64x64", model="12", user="13", extra_body=extra)
    asked.pop("timeout")
    assert base64.b64decode(asked.pop("image")) == IMAGE
    assert asked == {
        "prompt": "a boat",
        "num_images": 2,
        "width": 64,
        "height": 64,
        "strength": 0.5,
        "seed": 3,
        "negative_prompt": "12",
        "loras": [{"name": "style"}],
    }


def test_several_images_are_a_list(client: openai.OpenAI, model: Model) -> None:
    other = image(color=255)
    asked = edit_asked(client, model, image=[IMAGE, other])
    assert [base64.b64decode(image) for image in asked["image"]] == [IMAGE, other]


def test_what_is_clear_in_openai_s_mask_is_white_in_the_model_s(client: openai.OpenAI, model: Model) -> None:
    asked = edit_asked(client, model, image=IMAGE, mask=clear_mask())
    mask = Image.open(io.BytesIO(base64.b64decode(asked["mask"])))
    assert (mask.size, mask.mode) == ((8, 4), "L")
    assert mask.tobytes() == bytes([255] + 31 * [0])


def test_a_mask_fits_a_photo_as_people_see_it(client: openai.OpenAI, model: Model) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = image(size=(4, 8), kind="JPEG", exif=exif)
    assert "mask" in edit_asked(client, model, image=photo, mask=clear_mask((8, 4)))


def test_an_image_of_another_size_is_not_decoded_for_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    # A few KB may be hundreds of MB then.
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(InvalidInput, match="of the same size as image"):
        gateway.white_where_clear(clear_mask(), image(size=(64, 64)))


def test_an_edit_streams_its_own_events(client: openai.OpenAI) -> None:
    with client.images.edit(prompt="a boat", image=IMAGE, stream=True) as stream:
        (event,) = stream
    assert event.type == "image_edit.completed"
    type(event).model_validate(event.model_dump(), strict=True)


@pytest.mark.parametrize(
    ("parameters", "param", "words"),
    [
        ({"image": []}, "image", "must be one or more files"),
        ({"image": IMAGE, "mask": IMAGE}, "mask", "must be a valid PNG of the same size as image"),
        (
            {"image": IMAGE, "mask": image("RGBA", color=(0, 0, 0, 255))},
            "mask",
            "must be a valid PNG of the same size as image",
        ),
        ({"image": IMAGE, "mask": clear_mask((4, 8))}, "mask", "must be a valid PNG of the same size as image"),
        ({"image": IMAGE, "mask": b"no image"}, "mask", "must be a valid PNG of the same size as image"),
        ({"image": IMAGE, "mask": clear_mask()[:60]}, "mask", "must be a valid PNG of the same size as image"),
        ({"image": IMAGE, "markup": IMAGE}, "markup", "must be files"),
        ({"image": IMAGE, "input_fidelity": "high"}, "input_fidelity", "strength"),
    ],
)
def test_a_bad_edit_is_a_sentence(
    client: openai.OpenAI, model: Model, parameters: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.images.edit(prompt="a boat", **parameters)
    assert caught.value.param == param
    assert model.asked == []


def test_a_long_body_is_refused_before_it_is_read(
    client: openai.OpenAI, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "MAX_BODY", 100_000)
    for ask in (
        lambda: client.images.generate(prompt="a" * 200_000),
        lambda: client.images.edit(prompt="a boat", image=bytes(200_000)),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            ask()
        assert caught.value.status_code == 413
    assert model.asked == []


def test_a_body_of_unknown_length_is_refused(shared: tuple[Model, str]) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    for more in ({}, {"Content-Length": "2", "Transfer-Encoding": "chunked"}):
        answer = httpx.post(f"{shared[1]}/v1/images/generations", content=iter([b"{}"]), headers=headers | more)
        assert answer.status_code == 413
        assert "Content-Length must be set" in answer.json()["error"]["message"]


def test_a_wrong_key_is_401_and_none_is_shown(
    shared: tuple[Model, str], model: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # uvicorn keeps its own from caplog.
    monkeypatch.setattr(gateway, "log", logging.getLogger("of this test"))
    for key in ("wrong-key", "gateway-ke", "gateway-key2", "schl\u00fcssel"):
        headers = {"Authorization": f"Bearer {key}".encode()}
        answer = httpx.post(f"{shared[1]}/v1/images/generations", json={"prompt": "a boat"}, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert KEY not in answer.text
    wrong = openai.OpenAI(api_key="wrong-key", base_url=f"{shared[1]}/v1")
    for ask in (wrong.models.list, lambda: wrong.images.generate(prompt="a secret boat")):
        with pytest.raises(openai.AuthenticationError):
            ask()
    assert model.asked == []
    assert "401" in caplog.text
    assert not any(word in caplog.text for word in (KEY, "wrong-key", "boat"))


def test_models_names_one_and_health_needs_no_key(client: openai.OpenAI, shared: tuple[Model, str]) -> None:
    assert [each.id for each in client.models.list()] == ["abc123"]
    assert httpx.get(f"{shared[1]}/health").json() == {"status": "ok"}
    for method, path, status in (("GET", "/v1/chat", 404), ("GET", "/v1/images/edits", 405)):
        answer = httpx.request(method, shared[1] + path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_without_a_key_no_web_page_can_use_it() -> None:
    model = Model()
    with TestClient(gateway.application(model, "", 60)) as http:
        ask = {"json": {"prompt": "a boat"}}
        assert http.post("/v1/images/generations", **ask).status_code == 200
        refused = http.post("/v1/images/generations", **ask, headers={"Origin": "https://example.com"})
        assert refused.status_code == 403
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    ("arguments", "key", "sentence"),
    [
        (["--listen", "0.0.0.0"], "", "--listen 0.0.0.0 is public: set FAST_TRUSS_GATEWAY_KEY"),
        (["--listen", "::"], "", "--listen :: is public"),
        ([], "short", "must have 8 or more"),
        ([], "two words in it", "must have 8 or more"),
    ],
)
def test_what_it_cannot_be_started_with_is_a_sentence(
    arguments: list[str], key: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAST_TRUSS_GATEWAY_KEY", key)
    result = CliRunner().invoke(cli.app, ["gateway", "--url", "http://127.0.0.1:9", "--port", "0", *arguments])
    assert isinstance(result.exception, InvalidInput)
    assert sentence in str(result.exception)


@pytest.mark.parametrize(("listen", "asked"), [("127.0.0.1", ""), ("0.0.0.0", "typed-key")])
def test_the_key_is_read_from_a_file_or_the_environment_or_asked_for(
    listen: str, asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys: list[str] = []
    monkeypatch.setattr(gateway, "serve", lambda client, listen, port, key, seconds: keys.append(key))
    monkeypatch.setattr(cli.typer, "prompt", lambda *_, **__: "typed-key")
    # CliRunner puts its own in the place of sys.stdin.
    monkeypatch.setattr(cli, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    file = tmp_path / "key"
    file.write_text("from-the-file\n")
    command = ["gateway", "--url", "http://127.0.0.1:9", "--listen", listen]
    monkeypatch.delenv("FAST_TRUSS_GATEWAY_KEY", raising=False)
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    monkeypatch.setenv("FAST_TRUSS_GATEWAY_KEY", "from-the-environment")
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    assert CliRunner().invoke(cli.app, [*command, "--key-file", str(file)]).exit_code == 0
    assert keys == [asked, "from-the-environment", "from-the-file"]
    assert CliRunner().invoke(cli.app, [*command, "--key-file", str(tmp_path / "none")]).exit_code == 2


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fast_truss.gateway")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = CliRunner().invoke(cli.app, ["gateway", "--url", "http://127.0.0.1:9"])
    assert 'uvicorn is not installed: pip install "fast-truss[gateway]"' in str(result.exception)


needs_project = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)


@contextlib.contextmanager
def started(platform: Platform, *arguments: str) -> Iterator[openai.OpenAI]:
    """Run the command, and give openai's client of it. Its key and the prompts must not be in the log."""
    log = platform.project.parent / "gateway.log"
    command = [sys.executable, "-m", "fast_truss", "gateway", "--port", "0", *arguments]
    with log.open("w") as output:
        environment = {**platform.environment(), "FAST_TRUSS_GATEWAY_KEY": KEY, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=platform.project)
    try:
        for _ in range(600):
            if "Uvicorn running" in log.read_text() or process.poll() is not None:
                break
            time.sleep(0.05)
        address = log.read_text().split("running on ")[1].split()[0] + "/v1"
        with openai.OpenAI(api_key=KEY, base_url=address, max_retries=0) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)
    assert not any(word in log.read_text() for word in (KEY, "good-key", "boat"))


@needs_project
def test_openai_s_client_goes_through_a_cold_start(real_platform: Platform) -> None:
    small = {"prompt": "a boat", "size": "64x64", "extra_body": {"num_inference_steps": 1, "seed": 5}}
    with started(real_platform) as client:
        assert httpx.get(str(client.base_url.join("/health"))).status_code == 200
        assert real_platform.tell()["asked"] == real_platform.tell()["starts"] == 0
        first = client.images.generate(**small, n=2)
        assert real_platform.tell()["starts"] == 1
        images = [base64.b64decode(image.b64_json) for image in first.data]
        assert [Image.open(io.BytesIO(image)).size for image in images] == [(64, 64)] * 2
        assert [image.seed for image in first.data] == [5, 6]

        with client.images.generate(**small, stream=True) as stream:
            (event,) = stream
        assert base64.b64decode(event.b64_json) == images[0]

        # Red where it is kept: only the left half is painted.
        red = image(size=(64, 64), color=(255, 0, 0))
        mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
        mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
        buffer = io.BytesIO()
        mask.save(buffer, "PNG")
        edit = {"prompt": "a boat", "size": "64x64", "extra_body": {"mask_blur": 0, "num_inference_steps": 1}}
        made = client.images.edit(**edit, image=red, mask=buffer.getvalue()).data[0].b64_json
        edited = Image.open(io.BytesIO(base64.b64decode(made))).convert("RGB")
        assert edited.crop((32, 0, 64, 64)).getcolors() == [(32 * 64, (255, 0, 0))]
        assert edited.getpixel((8, 32)) != (255, 0, 0)
        again = client.images.edit(prompt="a boat", image=red, size="64x64", extra_body={"strength": 1.0})
        assert Image.open(io.BytesIO(base64.b64decode(again.data[0].b64_json))).size == (64, 64)

        for wrong, param in (
            ({"size": "65x64"}, "size"),
            ({"n": 99}, "n"),
            ({"prompt": "a boat " * 5000}, "prompt"),
            ({"output_format": "gif"}, "output_format"),
            ({"output_format": "jpeg", "output_compression": 0}, "output_compression"),
            ({"extra_body": {"num_steps": 3}}, "num_steps"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                client.images.generate(**{**small, **wrong})
            assert caught.value.param == param, caught.value


@needs_project
def test_a_deployment_that_cannot_answer_is_told_as_that(platform: Platform) -> None:
    with started(platform, "--timeout", "2") as client:
        # The platform ends when the last request has.
        platform.set(stuck=True, park_seconds=4)
        with pytest.raises(openai.InternalServerError) as caught:
            client.images.generate(prompt="a boat")
        assert caught.value.status_code == 504
        platform.set(scale_to_zero=True, clean=True, deactivated=True)
        with pytest.raises(openai.NotFoundError):
            client.images.generate(prompt="a boat")
        platform.set(clean=True, faults=[["model", 500, "Internal Server Error (in model/chainlet)."]])
        with pytest.raises(openai.InternalServerError):
            client.images.generate(prompt="a boat")

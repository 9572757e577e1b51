"""What the commands and the page work out by themselves: waterfalls, forms, words. Nothing is sent."""

import asyncio
import base64
import inspect
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
from baseten.client import managementapi as sdk
from conftest import render_config
from PIL import Image
from rich.console import Console
from test_client import MODEL, environment, reply
from typer.testing import CliRunner

from fast_truss import (
    Client,
    Event,
    InvalidInput,
    ModelFailed,
    NotFound,
    Status,
    cli,
    coldstart,
    console,
    doctor,
    fields,
    generation,
    load,
    transport,
    waterfall,
)
from fast_truss.errors import printable
from fast_truss.options import Where, check_file


def attempt() -> sdk.StartupAttempt:
    phases = [("SCHEDULING", 0, 4000), ("IMAGE_PULL", 4000, 3000), ("READINESS", 7000, None)]
    return sdk.StartupAttempt(
        model_id="m",
        deployment_id="d",
        deployment_name="first",
        environment_name="production",
        replica_id="r",
        started_at_epoch_millis=1_000_500,
        ready_at_epoch_millis=1_017_500,
        duration_ms=17_000,
        outcome="SUCCESS",
        phase_summary=[
            sdk.StartupPhaseSummary(phase=name, status="COMPLETED", offset_ms=offset, duration_ms=duration)
            for name, offset, duration in phases
        ],
    )


SERVER = {"server_start": 1.0, "import_torch": 5.0, "read_weights": 2.0, "first_image": 3.0}
STATUSES = [(0.1, "SCALED_TO_ZERO", 0), (1.0, "LOADING_MODEL", 0), (18.0, "ACTIVE", 1)]
SEEN = [(seconds, Status(status, count, "d", None)) for seconds, status, count in STATUSES]


def test_the_server_s_phases_are_inside_the_platform_s_last() -> None:
    bars = waterfall.bars_of(waterfall.recorded(attempt(), 1000.0), SEEN, 18.0, 21.0, SERVER)
    assert {bar.name: (bar.start, bar.seconds) for bar in bars} == {
        "SCHEDULING": (0.5, 4.0),
        "IMAGE_PULL": (4.5, 3.0),
        "READINESS": (7.5, 10.0),
        "server_start": (7.5, 1.0),
        "import_torch": (8.5, 5.0),
        "read_weights": (13.5, 2.0),
        "first image": (18.0, 3.0),
    }


def test_without_a_record_the_status_has_to_do() -> None:
    bars = waterfall.bars_of([], SEEN, 18.0, 21.0, SERVER)
    assert [(bar.name, bar.start) for bar in bars] == [
        ("SCALED_TO_ZERO", 0.1),
        ("LOADING_MODEL", 1.0),
        # They end when it is ready.
        ("server_start", 10.0),
        ("import_torch", 11.0),
        ("read_weights", 16.0),
        ("first image", 18.0),
    ]


class Recorded:
    """A client whose record of startups gives an answer, or fails."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def startups(self, *_: Any, **__: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("answer", [None, ModelFailed("x", 500), NotFound("x")])
def test_a_record_that_cannot_be_had_does_not_cost_what_was_measured(answer: Any) -> None:
    assert coldstart._recorded(Recorded(answer), "dep1", None, 1000.0) == []


@pytest.mark.parametrize("field", ["replica_id", "started_at_epoch_millis", "ready_at_epoch_millis", "phase_summary"])
def test_a_record_that_lacks_a_field_does_not_cost_what_was_measured(field: str) -> None:
    odd = transport.lenient(sdk.StartupAttempt, attempt().model_dump(mode="json", exclude={field}))
    assert coldstart._recorded(Recorded([odd]), "dep1", "x", 1000.0) == []


def test_the_startup_of_the_replica_that_ended_is_not_taken_for_the_next_one() -> None:
    later = attempt().model_copy(update={"replica_id": "next", "started_at_epoch_millis": 1_000_900})
    assert coldstart._recorded(Recorded([later, attempt()]), "dep1", "r", 1000.0)[0].start == pytest.approx(0.9)
    assert coldstart._recorded(Recorded([later, attempt()]), "dep1", None, 1000.0)[0].start == pytest.approx(0.5)


def test_a_waterfall_fits_any_terminal_and_a_png(tmp_path: Path) -> None:
    from PIL import Image

    bars = waterfall.bars_of(waterfall.recorded(attempt(), 1000.0), SEEN, 18.0, 21.0, SERVER)
    for width in (40, 80, 200):
        console = Console(width=width, record=True, file=(tmp_path / "out").open("w"))
        waterfall.show(bars, console)
        lines = console.export_text().splitlines()
        assert [line.split()[0] for line in lines] == [bar.name.split()[0] for bar in bars]
        assert all(re.search("[█▐▕]", line) for line in lines)
    waterfall.save(bars, "A cold start", tmp_path / "cold.png")
    with Image.open(tmp_path / "cold.png") as image:
        assert image.width > 1000
        colors = {"#{:02x}{:02x}{:02x}".format(*color[:3]) for _, color in image.getcolors(1_000_000)}
        assert set(waterfall.COLORS.values()) <= colors


@pytest.mark.parametrize("content", [b"\xff", b"a: [", b"3", b"model_cache: x", b"weights: [{}]"])
def test_doctor_says_what_is_wrong_with_any_config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path, content: bytes
) -> None:
    monkeypatch.delenv("BASETEN_API_KEY", raising=False)
    (tmp_path / "config.yaml").write_bytes(content)
    assert not doctor.before_the_push(tmp_path)
    config, key = capsys.readouterr().out.splitlines()
    assert config.startswith("failed  config.yaml: ")
    assert "Set --project to the project's folder" in config
    assert key == "failed  key and secrets: BASETEN_API_KEY is not set: use an API key of your Baseten workspace."


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "file/x.png", "none/x.png"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="--output"):
        check_file("--output", tmp_path / name, (".png",))


@pytest.mark.parametrize("url", ["", "ftp://x"])
@pytest.mark.parametrize("command", ["doctor", "status"])
def test_an_address_that_is_none_ends_the_command(command: str, url: str) -> None:
    with pytest.raises(InvalidInput, match="--url is"):
        cli.app([command, "--url", url], standalone_mode=False)


@pytest.mark.parametrize(("percent", "value"), [(50, 2.0), (95, 4.0), (99, 4.0)])
def test_percentiles_are_the_nearest_rank(percent: int, value: float) -> None:
    assert load.percentile([4.0, 1.0, 3.0, 2.0], percent) == value
    assert load.percentile([], percent) is None


LOADED = {"images": [{"image": "aGk=", "seed": 1}]}


class Loaded:
    """An AsyncClient that gives the answers in turn."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers

    async def __aenter__(self) -> "Loaded":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def status(self) -> Status:
        return Status("ACTIVE", 2, "dep1", None)

    async def generate(self, **request: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def loaded(answers: list[Any], requests: int) -> load.Result:
    result = load.Result()
    asyncio.run(load.run(Loaded(answers), result, [{"prompt": "a boat"}] * requests, 1, None))
    return result


def test_a_load_tells_what_was_no_image() -> None:
    result = loaded([LOADED, {"images": None}, ModelFailed("x", 500)], 3)
    assert (result.images, len(result.seconds)) == (1, 1)
    assert result.errors == {"The answer has no image: check that this is a fast-truss model.": 1, "x": 1}
    assert result.replicas == [2]


def test_a_load_that_only_fails_gives_up(capsys: pytest.CaptureFixture) -> None:
    failing = [ModelFailed("The model failed (500: no memory).", 500)] * load.GIVE_UP_AFTER
    result = loaded([*failing[1:], LOADED, *failing], 1000)
    failed = 2 * load.GIVE_UP_AFTER - 1
    assert (result.images, result.errors) == (1, {"The model failed (500: no memory).": failed})
    load.report(result, None, "closed loop", False)
    told = capsys.readouterr()
    assert "Gave up after 10 failures in a row." in told.err
    assert f"{failed} failed" in told.out
    assert "The model failed (500: no memory)." in told.out


def test_an_image_costs_the_replicas_that_were_seen(capsys: pytest.CaptureFixture) -> None:
    # Ten minutes of two replicas on average, at USD 0.01 a minute, for 20 images.
    result = load.Result(seconds=[0.1] * 19 + [8.0], images=20, wall=600.0, replicas=[1, 3, 3, 1])
    load.report(result, 0.01, "closed loop, 1 at once", True)
    found = json.loads(capsys.readouterr().out)
    assert found["usd_per_1000_images"] == pytest.approx(10.0)
    assert (found["p95"], found["max"]) == (0.1, 8.0)


# As pydantic writes them: of a model that takes several references, and LoRAs.
SCHEMA = {
    "$defs": {
        "LoraChoice": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": ["pixel-art"]},
                "scale": {"anyOf": [{"type": "number", "maximum": 2.0}, {"type": "null"}], "default": None},
            },
        }
    },
    "properties": {
        "prompt": {"type": "string", "maxLength": 2000},
        "image": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}],
            "description": "A PNG, JPEG or WebP file, in base64 or as a data: URL",
        },
        "mask": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "A file, in base64"},
        "loras": {"type": "array", "items": {"$ref": "#/$defs/LoraChoice"}, "maxItems": 4},
        "tile": {"type": "boolean"},
        "strength": {"type": "number"},
    },
    "required": ["prompt"],
}


class Told:
    def __init__(self, schema: Any) -> None:
        self.found = schema

    def schema(self, timeout: float) -> Any:
        if self.found is None:
            raise NotFound("It gives none.")
        return self.found


def request_of(*words: str, schema: Any = SCHEMA) -> dict[str, Any]:
    return fields.request_of(Told(schema), fields.given(list(words))[0], 60)


def test_fields_have_the_types_of_the_schema(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"hi")
    images = [word for name in ("a.png", "b.png") for word in ("--image", str(tmp_path / name))]
    assert request_of(*images[:2]) == {"image": "aGk="}
    assert request_of(*images) == {"image": ["aGk=", "aGk="]}
    assert request_of("--lora", "pixel-art") == {"loras": [{"name": "pixel-art"}]}
    both = [{"name": "pixel-art", "scale": -0.5}, {"name": "ink", "scale": 1.0}]
    assert request_of("--lora", "pixel-art:-0.5", "--loras=ink:1") == {"loras": both}
    several = {"tile": True, "prompt": "3", "strength": 0.5}
    assert request_of("--tile", "true", "--prompt", "3", "--strength", ".5") == several
    # Without a schema they are what JSON makes of them, and image and mask are files.
    untyped = request_of("--width", "64", "--negative-prompt", "a mast", *images, schema=None)
    assert untyped == {"width": 64, "negative_prompt": "a mast", "image": ["aGk=", "aGk="]}


def test_what_is_no_value_of_its_type_is_a_sentence(tmp_path: Path) -> None:
    for words, kind in ((["--tile", "maybe"], "switch"), (["--lora", "ink:much"], "styles")):
        with pytest.raises(InvalidInput, match=f"{words[0]} is '{words[1]}': it cannot be read as {kind}"):
            request_of(*words)
    (tmp_path / "a.png").write_bytes(b"hi")
    mask = ["--mask", str(tmp_path / "a.png")]
    # The model refuses it.
    assert request_of(*mask, *mask) == {"mask": ["aGk=", "aGk="]}
    with pytest.raises(InvalidInput, match=re.escape("--mask is 'none.png': it cannot be read (No such file")):
        request_of("--mask", "none.png")


def test_an_example_has_a_gray_image_if_the_model_needs_one() -> None:
    needs: Any = Told({**SCHEMA, "required": ["prompt", "image"]})
    made = fields.example(needs, 60)
    assert made == {"prompt": fields.PROMPT, "image": fields.GRAY}
    assert Image.open(io.BytesIO(base64.b64decode(made["image"]))).getcolors() == [(64, (128, 128, 128))]
    # The project has the same one.
    assert render_config(preset="qwen-image-edit-2511").model_metadata["example_model_input"]["image"] == fields.GRAY
    own = {"prompt": "a boat", "image": "aGk=", "seed": 1}
    assert fields.example(needs, 60, **own) == own
    for schema in (SCHEMA, None):
        other: Any = Told(schema)
        assert fields.example(other, 60, seed=1) == {"prompt": fields.PROMPT, "seed": 1}


class Made:
    """A client whose model makes two images at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = {"images": [{"image": "aGk=", "seed": seed} for seed in (1, 2)], "warnings": []}

    def generate(self, **request: Any) -> dict[str, Any]:
        self.asked.append("generate")
        return self.answer

    def events(self, **request: Any) -> Iterator[Event]:
        self.asked.append("events")
        yield Event("queued", {})
        for image, step in ((1, 1), (1, 2), (2, 1), (2, 2)):
            yield Event("step", {"image": image, "step": step, "of": 2, "seconds": 0.1})
        yield Event("result", self.answer)


@pytest.mark.parametrize(("terminal", "asked"), [(False, "generate"), (True, "events")])
def test_each_step_is_shown_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terminal: bool, asked: str
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = io.StringIO()
    made, shown = Made(), Console(file=screen, force_terminal=terminal, width=120)
    for module in (console, generation):
        monkeypatch.setattr(module, "console", lambda: shown)
    generation.ask(made, {"prompt": "a boat", "num_images": 2}, tmp_path / "out.png", 60, False)
    assert made.asked == [asked]
    assert [(tmp_path / f"out-{number}.png").read_bytes() for number in (1, 2)] == [b"hi"] * 2
    assert ("image 2 of 2, step 2 of 2" in screen.getvalue()) is terminal


ESCAPE = "\x1b[2J\x9b31mevil\x07"


@pytest.mark.parametrize("words", [["generate", "a boat"], ["fields"], ["autoscaling", "--min-replica", "0"]])
def test_no_escape_code_of_an_answer_reaches_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH":
            return reply(sdk.UpdateEnvironmentResponse(environment=environment(), status="ACCEPTED", message=ESCAPE))
        if "/v1/models/abc123/" in request.url.path:
            return reply(environment())
        told = {
            "images": [{"image": "aGk=", "seed": ESCAPE}],
            "warnings": [ESCAPE],
            "timings": {"cold_start": {ESCAPE: 1}},
        }
        schema = {"properties": {"prompt": {"type": "string", "description": ESCAPE}}}
        return httpx.Response(200, json={**told, "input_schema": schema})

    monkeypatch.setenv("BASETEN_API_KEY", "good-key")
    monkeypatch.chdir(tmp_path)
    client = Client(MODEL, transport=httpx.MockTransport(answer))
    console.console.cache_clear()
    with mock.patch.object(Where, "client", lambda _: client):
        result = CliRunner().invoke(cli.app, words)
    assert (result.exit_code, "evil" in result.output) == (0, True), result.output
    assert printable(result.output) == result.output


def test_both_clients_can_do_the_same() -> None:
    from fast_truss import AsyncClient

    def signatures(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if name[0] != "_"}

    assert signatures(Client) == signatures(AsyncClient)

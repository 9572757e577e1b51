"""What the page makes of a schema, of what a visitor filled in, and of a model that wakes. Nothing is sent."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CATALOG, PRESETS, BakedProject, render
from platforms import PROJECT_PYTHON

from fast_truss import AsyncClient, InvalidInput, Status, Target, Unreachable
from fast_truss.errors import of_answer
from fast_truss.fields import PROMPT_ALONE, fields_of, request_of_form
from fast_truss.watcher import Watcher

SCHEMA = {
    "$defs": {
        "LoraChoice": {
            "properties": {
                "name": {"enum": ["ink", "pixel-art"], "type": "string"},
                "scale": {"anyOf": [{"maximum": 2, "minimum": -2, "type": "number"}, {"type": "null"}]},
            }
        },
        "Ratio": {"enum": ["wide", "tall"], "type": "string"},
    },
    "properties": {
        "stream": {"type": "boolean", "default": False},
        "mask_blur": {"type": "integer", "minimum": 0, "maximum": 64, "default": 4, "description": "How soft."},
        "num_images": {"type": "integer", "minimum": 1, "maximum": 1, "default": 1},
        "num_inference_steps": {"type": "integer", "minimum": 1, "maximum": 50, "default": 30},
        "strength": {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"type": "null"}]},
        "seed": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}], "default": None},
        "loras": {"type": "array", "items": {"$ref": "#/$defs/LoraChoice"}, "maxItems": 2, "default": []},
        "image": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 3}]},
        "prompt": {"type": "string", "minLength": 1, "maxLength": 20},
        "ratio": {"$ref": "#/$defs/Ratio", "default": "wide"},
        "tiled": {"type": "boolean", "default": False},
        "sigmas": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}], "default": None},
    },
    "required": ["prompt"],
}


def test_a_schema_is_the_fields_of_the_page() -> None:
    fields = fields_of(SCHEMA)
    # The client asks for a stream, and one image leaves nothing to choose.
    assert [(field.name, field.kind, field.label) for field in fields] == [
        ("mask_blur", "integer", "Mask blur"),
        ("num_inference_steps", "integer", "Steps"),
        ("strength", "number", "Strength"),
        ("seed", "integer", "Seed"),
        ("loras", "styles", "Styles"),
        ("image", "file", "Image"),
        ("prompt", "text", "Prompt"),
        ("ratio", "choice", "Ratio"),
        ("tiled", "switch", "Tiled"),
        ("sigmas", "json", "Sigmas"),
    ]
    found = {field.name: field for field in fields}
    assert found["prompt"].required
    assert found["image"].schema["maxItems"] == 3
    assert found["strength"].schema["maximum"] == 1
    assert found["loras"].choices == ["ink", "pixel-art"]
    assert found["ratio"].choices == ["wide", "tall"]
    assert [field.name for field in fields_of(PROMPT_ALONE)] == ["prompt"]


def request(**filled: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"num_inference_steps": 30, "mask_blur": 4, "ratio": "wide", "tiled": False, "seed": ""}
    values |= {"prompt": "a boat", "strength": "", "image": None, "loras": [], "sigmas": ""}
    return request_of_form(fields_of(SCHEMA), {**values, **filled})


def test_a_form_is_a_request_without_what_is_the_default(tmp_path: Path) -> None:
    assert request(prompt=" a boat ") == {"prompt": "a boat"}
    assert request(seed=" 7 ") == {"prompt": "a boat", "seed": 7}
    # 0 is a seed, and no empty field.
    assert request(seed="0")["seed"] == 0
    more = request(num_inference_steps=5, ratio="tall", tiled=True, sigmas="[1, 0.5]", strength="0.5")
    assert more == {
        "prompt": "a boat",
        "num_inference_steps": 5,
        "ratio": "tall",
        "tiled": True,
        "sigmas": [1, 0.5],
        "strength": 0.5,
    }
    styles = request(loras=["pixel-art", "ink:0"])["loras"]
    assert styles == [{"name": "pixel-art"}, {"name": "ink", "scale": 0}]
    file = tmp_path / "x.png"
    file.write_bytes(b"hi")
    assert request(image=str(file))["image"] == "aGk="
    # A gallery gives each with its caption.
    assert request(image=[(str(file), None)])["image"] == "aGk="
    assert request(image=[(str(file), None)] * 2)["image"] == ["aGk=", "aGk="]


@pytest.mark.parametrize(
    ("filled", "sentence"),
    [
        ({"prompt": None}, "Prompt is empty: fill it in first."),
        ({"prompt": "  "}, "Prompt is empty: fill it in first."),
        ({"prompt": 5}, "Prompt cannot be read as text: fill it in again."),
        ({"seed": "x"}, "Seed cannot be read as integer"),
        ({"loras": ["ink:much"]}, "Styles cannot be read"),
        ({"seed": "1.5"}, "Seed cannot be read"),
        ({"seed": "9" * 5000}, "Seed cannot be read"),
        ({"loras": 5}, "Styles cannot be read"),
        ({"loras": [["x"]]}, "Styles cannot be read"),
        ({"image": "/no/such/file"}, "Image cannot be read"),
        ({"image": [5]}, "Image cannot be read"),
        ({"sigmas": "[1"}, "Sigmas cannot be read"),
        ({"sigmas": "[" * 100_000}, "Sigmas cannot be read"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(filled: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        request(**filled)


def test_a_refused_field_is_a_sentence_without_pydantic_in_it() -> None:
    body = b'{"error": "Input Parsing Error:\\n  `mask`: Value error, mask needs one image: send it as image."}'
    sentence = str(of_answer(400, {}, body))
    assert sentence == "The request was refused (400: `mask`: mask needs one image: send it as image)."


class Waking:
    """An AsyncClient whose model needs some looks to be ready."""

    def __init__(self, error: Exception | None = None) -> None:
        self.woken = 0
        self.error = error
        self.go_on = asyncio.Event()
        self.answers: list[Status | Exception] = []

    async def status(self, timeout: float) -> Status:
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def wake(self) -> None:
        self.woken += 1
        if self.error:
            raise self.error

    async def watch(self) -> Any:
        yield Status("WAKING_UP", 0, "d", None)
        await self.go_on.wait()
        yield Status("ACTIVE", 1, "d", None)


def test_all_visitors_share_one_watch() -> None:
    async def visit() -> None:
        waking = Waking()
        watcher = Watcher(waking)
        for _ in range(50):
            watcher.start()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert watcher.words() == "Waking: getting a machine (0 s)"
        assert watcher.kind == "waking"
        waking.go_on.set()
        while watcher.waiting:
            await asyncio.sleep(0)
        assert (watcher.words(), watcher.kind) == ("Ready", "ready")
        # So soon after it nobody needs to ask again.
        watcher.start()
        assert waking.woken == 1

    asyncio.run(visit())


def test_what_stops_a_watch_is_said_and_the_next_visitor_tries_again() -> None:
    async def visit() -> None:
        waking = Waking(Unreachable("the platform cannot be reached"))
        watcher = Watcher(waking)
        for tries in (1, 2):
            watcher.start()
            while watcher.waiting:
                await asyncio.sleep(0)
            assert (watcher.words(), watcher.kind) == ("the platform cannot be reached", "error")
            assert waking.woken == tries

    asyncio.run(visit())


def test_a_look_wakes_nothing_and_tells_when_the_model_is_gone() -> None:
    async def visit() -> None:
        waking = Waking()
        watcher = Watcher(waking)
        waking.answers = [
            Status("ACTIVE", 1, "d", None),
            Status("SCALED_TO_ZERO", 0, "d", None),
            Unreachable("it is gone"),
        ]
        seen = []
        while waking.answers:
            await asyncio.gather(*(watcher.look() for _ in range(50)))
            seen.append((watcher.kind, watcher.words()))
            watcher._ended -= 60
        asleep = ("asleep", "Asleep: the next image wakes the model")
        assert seen == [("ready", "Ready"), asleep, ("error", "it is gone")]
        assert waking.woken == 0

    asyncio.run(visit())


SCHEMAS = """
import json, pathlib, sys
from model.request import request_model
from pipeline_settings import read_settings
for config in json.load(sys.stdin):
    pathlib.Path("config.yaml").write_text(config)
    print(json.dumps(request_model(read_settings(pathlib.Path("config.yaml"))).model_json_schema()))
"""


@pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)
def test_the_page_asks_for_nothing_that_the_family_cannot_use(
    bake: Callable[..., BakedProject], tmp_path: Path
) -> None:
    configs = json.dumps([render("config.yaml", preset=preset) for preset in PRESETS])
    project = shutil.copytree(bake(preset="sd15").path, tmp_path / "project")
    options = {"cwd": project, "env": {"PYTHONPATH": f"{project}:{project / 'packages'}"}, "input": configs}
    result = subprocess.run([PROJECT_PYTHON, "-B", "-c", SCHEMAS], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    for preset, line in zip(PRESETS, result.stdout.splitlines(), strict=True):
        facts, names = CATALOG[preset], [field.name for field in fields_of(json.loads(line))]
        for name, expected in {
            "prompt": True,
            "negative_prompt": facts["negative_prompt"],
            "guidance_scale": facts["max_guidance_scale"] > 1,
            "image": facts["image_to_image"] or facts["reference_images"],
            "strength": facts["image_to_image"] or facts["inpaint"],
            "mask": facts["inpaint"],
            "mask_blur": facts["inpaint"],
            "mask_padding": facts["inpaint"],
            "loras": False,
            "stream": False,
        }.items():
            assert (name in names) == bool(expected), (preset, name)
        assert (set(names) & {"num_images", "seed", "width", "height"}) == {"num_images", "seed", "width", "height"}


def test_the_page_asks_for_the_image_that_a_model_needs(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install '.[page]'")
    from fast_truss.page import page

    client = AsyncClient(Target("local"), url="http://127.0.0.1:9")
    for required in (["prompt"], ["prompt", "image"]):
        fields = fields_of({**SCHEMA, "required": required})
        with page(client, "A title", fields, "A note.") as blocks:
            (start,) = [block for block in blocks.blocks.values() if getattr(block, "elem_id", None) == "start"]
        assert (start.visible, start.open) == (True, "image" in required)
    with pytest.raises(InvalidInput, match="Image is empty: fill it in first"):
        request_of_form(fields, {"prompt": "a boat", "image": []})
    (tmp_path / "x.png").write_bytes(b"hi")
    made = request_of_form(fields, {"prompt": "a boat", "image": [(str(tmp_path / "x.png"), None)]})
    assert made == {"prompt": "a boat", "image": "aGk="}


def test_a_style_has_its_strength_on_the_page() -> None:
    gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install '.[page]'")
    from fast_truss.page import page

    client = AsyncClient(Target("local"), url="http://127.0.0.1:9")
    with page(client, "A title", fields_of(SCHEMA), "A note.") as blocks:
        known = {block.label: block for block in blocks.blocks.values() if getattr(block, "label", None)}
    assert isinstance(known["Styles"], gradio.Dropdown)
    assert known["Styles"].max_choices == 2
    # As on the command line.
    assert known["Styles"].preprocess(["ink:0.5"]) == ["ink:0.5"]
    assert known["Styles"].info.endswith("with its scale: ink:0.8")
    assert isinstance(known["Steps"], gradio.Slider)
    assert (known["Steps"].minimum, known["Steps"].maximum, known["Steps"].value) == (1, 50, 30)
    # Empty fields, which the model fills in.
    assert isinstance(known["Strength"], gradio.Textbox)
    assert isinstance(known["Tiled"], gradio.Checkbox)
    assert known["Ratio"].value == "wide"
    assert known["Mask blur"].info == "How soft."

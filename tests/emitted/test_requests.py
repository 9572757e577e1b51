"""The bounds of a request are those of its preset, of which one process can build any."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import BLOCKS, FAMILIES, GRAY, Make, Served, text_of
from model.request import GenerationRequest, request_model
from PIL import Image
from pipeline_settings import Settings
from pydantic import ValidationError

FILE, WHITE = text_of(Image.new("RGB", (64, 64), "orange")), text_of(Image.new("L", (64, 64), 255))
# Of these the largest takes long.
COSTLY = ("num_inference_steps", "width", "height")


def of(preset: str) -> type[GenerationRequest]:
    return request_model(Settings.model_validate(BLOCKS[preset]))


def least(preset: str) -> dict[str, Any]:
    """Return a request of the fields that it must have."""
    references = BLOCKS[preset]["reference_images"]
    return {"prompt": "x"} | ({"image": GRAY} if references and references["required"] else {})


@pytest.mark.parametrize("preset", BLOCKS)
def test_the_bounds_and_defaults_are_those_of_the_preset(preset: str) -> None:
    block, model = BLOCKS[preset], of(preset)
    limits, defaults = block["limits"], block["defaults"]
    usual = model(**least(preset))
    assert {name: getattr(usual, name) for name in defaults if name != "strength"} == {
        name: value for name, value in defaults.items() if name != "strength"
    }
    assert usual.strength is None
    multiple = limits["size_multiple"]
    bounds: dict[str, tuple[float, float, float]] = {
        "num_inference_steps": (limits["min_steps"], limits["max_steps"], 1),
        "guidance_scale": (0, limits["guidance_scale"], 0.5),
        "width": (limits["min_size"], limits["max_size"], multiple),
        "height": (limits["min_size"], limits["max_size"], multiple),
        "num_images": (1, limits["num_images"], 1),
        "seed": (0, 2**32 - 1, 1),
        "quality": (1, 100, 1),
    }
    for name, (low, high, step) in bounds.items():
        # Both at their largest may be more pixels than the GPU holds.
        other = {"width": "height", "height": "width"}.get(name)
        beside = {other: limits["min_size"]} if other else {}
        for good in (low, high):
            assert getattr(model(**least(preset), **{name: good}, **beside), name) == good
        for bad in (low - step, high + step):
            with pytest.raises(ValidationError, match=name):
                model(**least(preset), **{name: bad})
    for name in ("width", "height"):
        with pytest.raises(ValidationError, match=f"multiple of {multiple}"):
            model(**least(preset), **{name: limits["min_size"] + multiple // 2})
    most = limits["prompt_characters"]
    assert model(**{**least(preset), "prompt": "x" * most})
    for field in ("prompt", "negative_prompt"):
        with pytest.raises(ValidationError, match=f"{field}\n.*at most {most} characters"):
            model(**{**least(preset), field: "x" * (most + 1)})


@pytest.mark.parametrize("preset", BLOCKS)
def test_no_request_has_more_pixels_than_the_gpu_holds(preset: str) -> None:
    limits, model = BLOCKS[preset]["limits"], of(preset)
    multiple, longest = limits["size_multiple"], limits["max_size"]
    side = math.isqrt(limits["max_pixels"])
    most = min(longest, limits["max_pixels"] // longest // multiple * multiple)
    for width, height in ((side, side), (longest, most), (most, longest)):
        assert model(**least(preset), width=width, height=height)
    assert str(limits["max_pixels"]) in model.model_json_schema()["properties"]["width"]["description"]
    if most < longest:
        words = f"at width {longest}, height is at most {most}: this model makes {limits['max_pixels']} pixels"
        with pytest.raises(ValidationError, match=words):
            model(**least(preset), width=longest, height=most + multiple)
        with pytest.raises(ValidationError, match="height is at most"):
            model(**least(preset), width=side + multiple, height=side)


@pytest.mark.parametrize("preset", BLOCKS)
def test_the_schema_tells_the_bounds_and_every_field(preset: str) -> None:
    block, schema = BLOCKS[preset], of(preset).model_json_schema()
    fields: dict[str, Any] = schema["properties"]
    assert list(fields) == [name for name in GenerationRequest.model_fields if name in fields]
    assert all(field.get("description") for field in fields.values())
    assert fields["width"]["maximum"] == fields["height"]["maximum"] == block["limits"]["max_size"]
    assert ("mask_padding" in fields) == (block["inpaint"] is not None)
    if "image" in fields:
        kinds = [choice["type"] for choice in fields["image"]["anyOf"]]
        several = (block["reference_images"] or {}).get("count", 1) > 1
        needed = "image" in schema["required"]
        assert kinds == ["string", *["array"] * several, *["null"] * (not needed)]
    if "strength" in fields:
        assert str(block["defaults"]["strength"]) in fields["strength"]["description"]


def test_two_presets_in_one_process_do_not_share_their_bounds() -> None:
    small, large = of("sd-turbo"), of("flux-dev")
    assert small.model_fields["width"].default != large.model_fields["width"].default
    assert small.settings is not large.settings
    assert small.max_bytes == large.max_bytes
    # The class that they come from has none.
    assert "settings" not in vars(GenerationRequest)


@pytest.mark.parametrize("preset", FAMILIES)
def test_null_is_as_left_out(preset: str) -> None:
    model = of(preset)
    optional = [name for name, field in model.model_fields.items() if not field.is_required()]
    needed = least(preset)
    usual = model(**needed)
    for body in ({**needed, **dict.fromkeys(optional)}, *({**needed, name: None} for name in optional)):
        for made in (model.parse_raw(json.dumps(body).encode()), model.parse_obj(body)):
            assert made == usual
            assert made.model_fields_set == usual.model_fields_set
    with pytest.raises(ValidationError, match=r"prompt\n.*valid string"):
        model.parse_obj({**needed, "prompt": None})
    with pytest.raises(ValidationError, match=r"unknown\n.*not permitted"):
        model.parse_obj({**needed, "unknown": 1})


def test_all_bad_fields_are_named_at_once_and_ten_at_most() -> None:
    for body, count in (
        ({"width": 1, "seed": -1, "quality": 0}, 3),
        ({f"field {number}": 1 for number in range(1000)}, 10),
    ):
        with pytest.raises(ValidationError) as caught:
            of("sd15").parse_obj({"prompt": "x", **body})
        assert {error["loc"][0] for error in caught.value.errors()} <= set(body)
        assert caught.value.error_count() == count


def test_each_sentence_is_plain_and_under_a_name() -> None:
    model, wrong = of("sd15"), {"strength": 0.5, "loras": [{"name": "x"}], "mask_blur": 4, "image": "AAAA"}
    bodies = [{name: value} for name, value in wrong.items()] + [{"image": FILE, "strength": 0.001}]
    for body in [*bodies, {"negative_prompt": "{x}", "guidance_scale": 0.0}]:
        with pytest.raises(ValidationError) as caught:
            model.parse_obj({"prompt": "x", **body})
        (error,) = caught.value.errors()
        assert error["loc"][0] in body
        assert "Value error" not in error["msg"]


def values_of(name: str, field: dict[str, Any]) -> Iterator[Any]:
    """Yield what the schema allows for the field: the least and the most, or each choice."""
    if name in ("image", "mask"):
        yield FILE if name == "image" else WHITE
        return
    for choice in field.get("anyOf", [field]):
        if choice["type"] == "null":
            yield None
        elif "enum" in choice:
            yield from choice["enum"]
        elif choice["type"] == "boolean":
            yield False
        elif choice["type"] == "string":
            yield "x"
        elif choice["type"] == "array":
            yield []
        elif name in COSTLY:
            yield from (choice["minimum"], choice["minimum"] + choice.get("multipleOf", 1))
        else:
            yield from (choice.get("minimum", 0.5), choice["maximum"])


@pytest.mark.parametrize("preset", FAMILIES)
def test_one_field_more_is_an_image_or_a_sentence(
    preset: str, settings_of: Make, serve: Callable[[Any], Served]
) -> None:
    """With each field of the schema: from noise, from an image, and with a mask."""
    served = serve(settings_of(preset))
    settings = served.settings
    side, steps = settings.limits.min_size, max(settings.limits.min_steps, 2)
    small = {"num_inference_steps": steps, "width": side, "height": side}
    starts: list[dict[str, Any]] = [{}]  # of a model that needs an image, one all the same
    starts += [{"image": FILE, "strength": 1.0}] if settings.image_to_image else []
    starts += [{"image": FILE, "mask": WHITE}] if settings.inpaint else []
    starts += [{"image": FILE}] if settings.reference_images else []
    made: set[str] = set()
    fields: dict[str, Any] = served.request.model_json_schema()["properties"]
    for name, field in fields.items():
        for value in values_of(name, field):
            for start in starts:
                body = {**small, **start, name: value}
                try:
                    answer = served.ask(**body)
                except ValidationError as error:
                    assert error.error_count() == 1, body
                    continue
                if body.get("stream") is not True:
                    assert answer.images, (body, answer)
                if value is not None:  # null is a field left out, which says nothing of the field
                    made.add(name)
    # What a model cannot use is not in its schema, and what is there it can use.
    assert made == set(fields)

"""The bounds of a request are those of its preset, of which one process can build any."""

from typing import Any

import pytest
from conftest import BLOCKS
from model.request import GenerationRequest, request_model
from pipeline_settings import Settings
from pydantic import ValidationError


def of(preset: str) -> type[GenerationRequest]:
    return request_model(Settings.model_validate(BLOCKS[preset]))


@pytest.mark.parametrize("preset", BLOCKS)
def test_the_bounds_and_defaults_are_those_of_the_preset(preset: str) -> None:
    block, model = BLOCKS[preset], of(preset)
    limits, defaults = block["limits"], block["defaults"]
    usual = model(prompt="x")
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
        for good in (low, high):
            assert getattr(model(prompt="x", **{name: good}), name) == good
        for bad in (low - step, high + step):
            with pytest.raises(ValidationError, match=name):
                model(prompt="x", **{name: bad})
    for name in ("width", "height"):
        with pytest.raises(ValidationError, match=f"multiple of {multiple}"):
            model(prompt="x", **{name: limits["min_size"] + multiple // 2})
    most = limits["prompt_characters"]
    assert model(prompt="x" * most)
    for field in ("prompt", "negative_prompt"):
        with pytest.raises(ValidationError, match=f"{field}\n.*at most {most} characters"):
            model(**{"prompt": "x", field: "x" * (most + 1)})


@pytest.mark.parametrize("preset", BLOCKS)
def test_the_schema_tells_the_bounds_and_every_field(preset: str) -> None:
    block, schema = BLOCKS[preset], of(preset).model_json_schema()
    fields: dict[str, Any] = schema["properties"]
    assert list(fields) == list(GenerationRequest.model_fields)
    assert all(field.get("description") for field in fields.values())
    assert fields["width"]["maximum"] == fields["mask_padding"]["anyOf"][0]["maximum"] == block["limits"]["max_size"]
    references = block["reference_images"]
    kinds = [choice["type"] for choice in fields["image"]["anyOf"]]
    assert kinds == (["string", "array", "null"] if references else ["string", "null"])
    assert ("references" in str(references)) or (
        str(block["defaults"]["strength"]) in fields["strength"]["description"]
    )


def test_two_presets_in_one_process_do_not_share_their_bounds() -> None:
    small, large = of("sd-turbo"), of("flux-dev")
    assert small.model_fields["width"].default != large.model_fields["width"].default
    assert small.settings is not large.settings
    assert small.max_bytes == large.max_bytes
    # The class that they come from has none.
    assert "settings" not in vars(GenerationRequest)

"""The catalog's facts about diffusers' classes, and features that diffusers lacks."""

import inspect
import re

import diffusers
import pytest
from conftest import BLOCKS, FACTS, FAMILIES


def name_of(preset: str) -> str:
    return BLOCKS[preset]["class_name"].removesuffix("Pipeline")


def pipelines(preset: str, kind: str) -> list[str]:
    """Return the pipelines of the preset's family that diffusers has, and no other that needs more models."""
    return [name for name in dir(diffusers) if re.fullmatch(rf"{name_of(preset)}{kind}Pipeline", name)]


@pytest.mark.parametrize("preset", [preset for preset in FAMILIES if not BLOCKS[preset]["inpaint"]])
def test_a_family_without_masks_has_no_such_pipeline(preset: str) -> None:
    assert pipelines(preset, "Inpaint") == []


@pytest.mark.parametrize("preset", [preset for preset in FAMILIES if not BLOCKS[preset]["image_to_image"]])
def test_a_family_that_does_not_start_from_an_image_has_no_such_pipeline(preset: str) -> None:
    assert pipelines(preset, "(Img2Img|ImageToImage)") == []


@pytest.mark.parametrize("preset", FAMILIES)
def test_the_catalog_names_the_components_that_the_class_takes(preset: str) -> None:
    taken = inspect.signature(getattr(diffusers, BLOCKS[preset]["class_name"])).parameters
    named = {*FACTS[preset].components, *FACTS[preset].left_out}
    assert {name for name, parameter in taken.items() if parameter.default is parameter.empty} <= named <= taken.keys()


@pytest.mark.parametrize("preset", FAMILIES)
def test_the_catalog_says_whether_the_class_loads_loras(preset: str) -> None:
    assert FACTS[preset].lora == hasattr(getattr(diffusers, BLOCKS[preset]["class_name"]), "load_lora_weights")

"""What the catalog leaves out because diffusers has no pipeline for it: a test fails when there is one."""

import re

import diffusers
import pytest
from conftest import BLOCKS, FAMILIES


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

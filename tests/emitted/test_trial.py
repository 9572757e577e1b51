"""`make check` on tiny weights: what a request would fail by, and what has no effect, is a sentence."""

import re
import sys
from typing import Any

import pytest
from cold_start.signatures import check_pipelines
from conftest import BLOCKS, FAMILIES, PROJECT, Make
from pipeline_settings import SettingsError

sys.path.append(str(PROJECT))
import trial

# One of each family, and what their other presets say of the scheduler and of calls.
PRESETS = [*FAMILIES, "sd15-lcm", "sdxl-lightning", "flux2-klein-4b-8bit"]
# On these the pipeline moves the sigmas by the size of the image, so that `shift` means nothing.
DYNAMIC = ("flux-dev", "qwen-image-2512", "flux2-klein-4b")


def tried(settings_of: Make, preset: str, **changes: Any) -> list[str]:
    defaults = {**BLOCKS[preset]["defaults"], "width": 64, "height": 64}
    defaults["num_inference_steps"] = min(defaults["num_inference_steps"], 8)
    own = {"cpu_dtype": "float32", "defaults": defaults, "call_kwargs": BLOCKS[preset]["call_kwargs"]}
    return trial.Trial(settings_of(preset, **{**own, **changes})).problems()


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_wrong_with_a_preset(preset: str, settings_of: Make) -> None:
    assert tried(settings_of, preset) == []


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("sd15", {"call_kwargs": {"guidance_rescale": 0.7}, "image_to_image": None, "inpaint": None}),
        ("sd15", {"scheduler": {"class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}}),
        ("sd15", {"scheduler": {"timestep_spacing": "trailing"}}),
        ("pixart-sigma", {"scheduler": {"use_karras_sigmas": True}}),
        ("lcm-dreamshaper", {"scheduler": {"original_inference_steps": 100}}),
        # As the repository has it, and it counts.
        ("sd3-medium", {"scheduler": {"shift": 3.0}}),
        ("z-image-turbo", {"scheduler": {"shift": 9.0}}),
        *[(preset, {"scheduler": {"use_dynamic_shifting": False, "shift": 3.0}}) for preset in DYNAMIC],
        ("flux-schnell", {"call_kwargs": {"max_sequence_length": 512}}),
        # Off, with it or without.
        ("sd15", {"scheduler": {"class_name": "EulerDiscreteScheduler", "use_karras_sigmas": False}}),
    ],
)
def test_a_setting_with_an_effect_is_no_problem(preset: str, changes: dict[str, Any], settings_of: Make) -> None:
    assert tried(settings_of, preset, **changes) == []


@pytest.mark.parametrize(
    ("preset", "changes", "sentence"),
    [
        *[
            (preset, {"scheduler": {"shift": shift}}, r"scheduler\.shift: it has no effect on this model")
            for preset in DYNAMIC
            for shift in (3.0, 9.0)
        ],
        ("sd15", {"call_kwargs": {"eta": 0.5}}, r"call_kwargs\.eta: it has no effect on requests with(out)? an? \w+"),
        (
            "flux-schnell",
            {"call_kwargs": {"max_sequence_length": 1024}},
            r"call_kwargs\.max_sequence_length: every request with(out)? an? \w+ would fail\. .*512",
        ),
        ("sd15", {"call_kwargs": {"cross_attention_kwargs": 5}}, r"call_kwargs\.cross_attention_kwargs: every request"),
    ],
)
def test_what_has_no_effect_or_survives_no_call_is_a_sentence(
    preset: str, changes: dict[str, Any], sentence: str, settings_of: Make
) -> None:
    found = tried(settings_of, preset, **changes)
    assert found
    for each in found:
        assert re.fullmatch(rf"config\.yaml, {sentence}.*", each)


@pytest.mark.parametrize(
    ("preset", "changes", "sentence"),
    [
        (
            "sd3.5-medium",
            {"call_kwargs": {"skip_guidance_layers": [7, 8, 9]}},
            "StableDiffusion3Img2ImgPipeline takes no skip_guidance_layers: remove it, or set image_to_image to null",
        ),
        (
            "sd15",
            {"call_kwargs": {"guidance_rescale": 0.7}, "image_to_image": None},
            "StableDiffusionInpaintPipeline takes no guidance_rescale: remove it, or set inpaint to null",
        ),
        (
            "sdxl",
            {"call_kwargs": {"guidance_rescale": "0.7"}},
            r"call_kwargs\.guidance_rescale: use a value such as 0\.0",
        ),
        (
            "flux-schnell",
            {"call_kwargs": {"max_sequence_length": True}},
            "max_sequence_length: use a value such as 512",
        ),
        ("sd15", {"scheduler": {"class_name": "EulerDiscretScheduler"}}, "did you mean EulerDiscreteScheduler"),
    ],
)
def test_load_refuses_what_the_signatures_tell(
    preset: str, changes: dict[str, Any], sentence: str, settings_of: Make
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        tried(settings_of, preset, **changes)


@pytest.mark.parametrize("preset", BLOCKS)
def test_the_signatures_fit_every_preset(preset: str, settings_of: Make) -> None:
    check_pipelines(settings_of(preset))

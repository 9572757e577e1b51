"""Every scheduler that can be chosen makes an image at every number of steps that limits allow."""

import base64
import functools
import io
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import yaml
from cold_start.pipeline import read_pipeline
from conftest import ALL, BLOCKS, READMES, TINY, Make, Request, Served, serve_with
from PIL import Image
from pydantic import ValidationError

SCHEDULERS = [
    {"class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    {"class_name": "DEISMultistepScheduler"},
    {"class_name": "DPMSolverMultistepScheduler"},
    {"class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
    {"class_name": "DPMSolverSinglestepScheduler"},
    {"class_name": "EulerAncestralDiscreteScheduler"},
    {"class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
    {"class_name": "HeunDiscreteScheduler"},
    {"class_name": "KDPM2DiscreteScheduler"},
    {"class_name": "LCMScheduler"},
    {"class_name": "PNDMScheduler", "skip_prk_steps": True},
    {"class_name": "PNDMScheduler", "skip_prk_steps": False},
    {"class_name": "TCDScheduler"},
    {"class_name": "UniPCMultistepScheduler"},
]
STEPS = ("min_steps", "max_steps", "max_steps_per_strength")
# The changes in each docs/tuning.md, block by block.
SAID = [
    (preset, yaml.safe_load(textwrap.dedent(block)))
    for preset, readme in READMES.items()
    for block in re.findall(r"```yaml\n(.*?)```", readme.split("`scheduler` in")[1].split("\n## ")[0], re.DOTALL)
]
# Once for each pipeline and scheduler that it changes.
RECIPES = list(
    {(BLOCKS[p]["class_name"], str(TINY[p]["scheduler"]), str(recipe)): (p, recipe) for p, recipe in SAID}.values()
)
# One preset of those with the same pipeline, scheduler and steps.
ALIKE = {
    str(
        [block[name] for name in ("class_name", "scheduler", "call_kwargs")] + list(map(block["limits"].get, STEPS))
    ): name
    for name, block in BLOCKS.items()
}
BOUNDS = {"LCMScheduler": (1, 50), "TCDScheduler": (1, 50)}


def check(served: Served, steps: int, **body: object) -> str:
    image = served.image(num_inference_steps=steps, **body)
    pixels = numpy.asarray(Image.open(io.BytesIO(base64.b64decode(image))))
    assert pixels.min() < pixels.max(), f"{steps} steps make a constant image"
    return image


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: "-".join(map(str, scheduler.values())))
def test_a_scheduler_that_is_chosen_works_at_every_number_of_steps(
    scheduler: dict[str, object], settings_of: Make, serve: Callable[..., Served]
) -> None:
    least, most = BOUNDS.get(str(scheduler["class_name"]), (1, 100 if ALL else 40))
    if scheduler.get("skip_prk_steps") is False:
        least = 4
    limits = {**BLOCKS["sd15"]["limits"], "min_steps": least, "max_steps": most}
    served = serve(settings_of("sd15", scheduler=scheduler, limits=limits))
    assert type(served.pipeline.scheduler).__name__ == scheduler["class_name"]
    usual = check(served, least)
    for steps in (least + 1, least + 2, most):
        check(served, steps)
    # An image request in between changes nothing.
    check(served, max(least, 4), image=usual, strength=0.5)
    for strength in (0.5, 1.0):
        check(served, max(least, 4), image=usual, mask=usual, strength=strength)
    assert check(served, least) == usual


@pytest.mark.parametrize("preset", BLOCKS if ALL else ALIKE.values())
def test_the_scheduler_of_each_preset_works_at_its_bounds(
    preset: str, settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of(preset))
    limits = served.settings.limits
    usual = check(served, limits.min_steps)
    check(served, limits.min_steps + 1)
    check(served, limits.max_steps)
    if served.settings.image_to_image is None:
        return
    for strength in (0.1, 0.58):
        factor = limits.max_steps_per_strength
        most = int(factor * strength) if factor else limits.max_steps
        least = limits.min_steps if factor else max(limits.min_steps, round(1 / strength + 0.49))
        if least > most:
            with pytest.raises(ValidationError, match=f"strength {strength} is too little"):
                served.ask(image=usual, strength=strength)
            continue
        check(served, least, image=usual, strength=strength)
        check(served, most, image=usual, strength=strength)


def test_each_preset_has_recipes() -> None:
    assert {preset for preset, _ in SAID} == set(BLOCKS)
    chosen = [recipe["scheduler"].get("class_name") for preset, recipe in SAID if preset in ("sd15", "sdxl")]
    assert chosen == 2 * ["DPMSolverMultistepScheduler", "LCMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"]


@pytest.fixture(scope="module")
def unchanged(settings_of: Make) -> Iterator[Callable[[str], Served]]:
    """Serve a preset as it is. Its recipes come one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        yield functools.lru_cache(maxsize=1)(lambda preset: serve_with(patch)(settings_of(preset)))


@pytest.mark.parametrize(("preset", "recipe"), RECIPES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_recipe_has_the_effect_that_it_is_there_for(
    preset: str,
    recipe: dict[str, Any],
    unchanged: Callable[[str], Served],
    tiny: Any,
    weights: Callable[[str], Path],
    settings_of: Make,
    serve: Callable[..., Served],
    tmp_path: Path,
) -> None:
    changes = changed(BLOCKS[preset], recipe)
    for folder in weights(preset).iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    for lora in changes["loras"]:
        tiny.make_lora(tmp_path, read_pipeline(settings_of(preset), "cpu"), lora["name"])
        changes["weight_files"] = {**changes["weight_files"], f"lora-{lora['name']}": ["*.safetensors"]}
    served = serve(settings_of(preset, tmp_path, **{name: changes[name] for name in ("weight_files", *recipe)}))
    for name, value in recipe.get("scheduler", {}).items():
        config = served.pipeline.scheduler.config
        assert (type(served.pipeline.scheduler).__name__ if name == "class_name" else config[name]) == value
    defaults = served.settings.defaults
    same = {"num_inference_steps": defaults.num_inference_steps, "guidance_scale": defaults.guidance_scale}
    # With the same steps and guidance, so what else it changes counts.
    assert check(served, defaults.num_inference_steps, guidance_scale=defaults.guidance_scale) != unchanged(
        preset
    ).image(**same)
    if "num_inference_steps" in recipe.get("defaults", {}):
        assert steps_of_a_plain_request(served) == defaults.num_inference_steps
        assert defaults.num_inference_steps < BLOCKS[preset]["defaults"]["num_inference_steps"]


def steps_of_a_plain_request(served: Served) -> int:
    """Return how many steps it takes if a request says nothing of them."""
    counted, class_ = [], type(served.pipeline.scheduler)
    true = class_.step
    with pytest.MonkeyPatch.context() as patch:
        # Each request has a scheduler of its own.
        patch.setattr(class_, "step", lambda *step, **more: counted.append(1) or true(*step, **more))
        assert served.model.predict(served.request(prompt="a boat", width=64, height=64, seed=0), Request()).images
    return len(counted)


def levels(preset: str, **changes: Any) -> numpy.ndarray:
    """Return the sigmas of twenty steps, from the most noise to the least."""
    config = {**TINY[preset]["scheduler"], **changes}
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(20)
    return scheduler.sigmas[:-1].numpy()


def test_karras_sigmas_spend_more_steps_at_little_noise() -> None:
    usual = levels("pixart-sigma")
    assert (levels("pixart-sigma", use_karras_sigmas=True) < 1).sum() > (usual < 1).sum()


@pytest.mark.parametrize("preset", ["flux-dev", "sd3-medium", "z-image-turbo"])
def test_a_larger_shift_spends_more_steps_at_much_noise(preset: str) -> None:
    counts = [(levels(preset, use_dynamic_shifting=False, shift=shift) > 0.5).sum() for shift in (1.0, 2.0, 4.0)]
    assert counts == sorted(set(counts))


def changed(block: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the block with what the recipe names in place of what stands there."""
    assert recipe.keys() <= block.keys()
    return block | {
        name: changed(block[name], value) if name in ("defaults", "limits") else value for name, value in recipe.items()
    }

"""Every scheduler that can be chosen makes a picture at every number of steps that limits allow."""

import base64
import io
from collections.abc import Callable

import numpy
import pytest
from conftest import BLOCKS, Make, Served
from PIL import Image

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
BOUNDS = {"LCMScheduler": (1, 50), "TCDScheduler": (1, 50)}


def check(served: Served, steps: int, **body: object) -> str:
    image = served.picture(num_inference_steps=steps, **body)
    pixels = numpy.asarray(Image.open(io.BytesIO(base64.b64decode(image))))
    assert pixels.min() < pixels.max(), f"{steps} steps make a constant picture"
    return image


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: "-".join(map(str, scheduler.values())))
def test_a_scheduler_that_is_chosen_works_at_every_number_of_steps(
    scheduler: dict[str, object], settings_of: Make, serve: Callable[..., Served]
) -> None:
    least, most = BOUNDS.get(str(scheduler["class_name"]), (1, 100))
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


@pytest.mark.parametrize("preset", BLOCKS)
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
        check(served, least, image=usual, strength=strength)
        check(served, most, image=usual, strength=strength)

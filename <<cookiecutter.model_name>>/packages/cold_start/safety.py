"""Finds images to refuse, with a safety checker, if config.yaml names one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cold_start import proof
from cold_start.pipeline import read_weights
from cold_start.weights import WeightsError
from pipeline_settings import Settings, one_line


def read_safety(settings: Settings, device: str) -> Callable[[Any], bool]:
    """Return a function that tells whether to refuse an image. Raises WeightsError."""
    if settings.safety is None:
        return lambda image: False
    import numpy
    import torch
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from PIL import ImageOps
    from transformers import CLIPImageProcessor

    name, folder = "safety_checker", Path(settings.weights_dir) / settings.safety
    dtype = getattr(torch, settings.dtype_on(device))
    checker = read_weights(name, StableDiffusionSafetyChecker, folder / name, "fp16", dtype=dtype, device_map=device)
    proof.check_placement(name, checker, dtype, device)
    try:
        processor = CLIPImageProcessor.from_pretrained(folder / "feature_extractor", local_files_only=True)
    except (OSError, ValueError) as error:
        raise WeightsError(f"feature_extractor cannot be read from {folder}: {one_line(error)}.") from error

    def is_unsafe(image: Any) -> bool:
        # Of what is not square the processor would cut the ends off.
        whole = ImageOps.pad(image, (max(image.size), max(image.size)))
        pixels = processor(whole, return_tensors="pt").pixel_values.to(device, dtype)
        # The checker blackens the images that it gets: here a dummy.
        return bool(checker(clip_input=pixels, images=[numpy.zeros(1)])[1][0])

    return is_unsafe

"""Finds images to refuse, with a safety checker, if config.yaml names one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cold_start import proof
from cold_start.pipeline import read_weights
from pipeline_settings import Settings


def read_safety(settings: Settings, device: str) -> Callable[[Any], bool]:
    """Return what tells whether an image shows what must not be seen. Raises WeightsError."""
    if settings.safety is None:
        return lambda image: False
    import numpy
    import torch
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    name, folder = "safety_checker", Path(settings.weights_dir) / settings.safety
    dtype = getattr(torch, settings.cpu_dtype if device == "cpu" else settings.dtype)
    options = {"dtype": dtype, "device_map": device, "local_files_only": True}
    checker = read_weights(name, StableDiffusionSafetyChecker, folder / name, "fp16", **options)
    proof.check_placement(name, checker, dtype, device)
    processor = CLIPImageProcessor.from_pretrained(folder / "feature_extractor", local_files_only=True)

    def is_unsafe(image: Any) -> bool:
        pixels = processor(image, return_tensors="pt").pixel_values.to(device, dtype)
        # It blackens the images that it is given: here none that anybody gets.
        return bool(checker(clip_input=pixels, images=[numpy.zeros(1)])[1][0])

    return is_unsafe

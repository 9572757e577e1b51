"""Generates the first images inside load(), and compiles the model, if config.yaml says so."""

import logging
from collections.abc import Callable
from typing import Any

from pipeline_settings import Settings, SettingsError, one_line

logger = logging.getLogger("uvicorn")


def warm_up(denoiser: Any, settings: Settings, make_image: Callable[[int, int], Any]) -> None:
    """Generate one image of each size, so that kernels are loaded or compiled before the first request.

    denoiser: the UNet or transformer. make_image: takes width and height. Raises SettingsError.
    """
    import torch

    sizes = settings.warm_up_sizes or [[settings.defaults.width, settings.defaults.height]]
    if settings.compile:
        compile_blocks(denoiser)
        if all(width == height for width, height in sizes):
            # Of squares alone torch learns that both sides are one number, and what it compiled is for no other size.
            side, multiple = sizes[0][0], settings.limits.size_multiple
            sizes = [*sizes, [side, max(side // 2 // multiple * multiple, settings.limits.min_size)]]
    for width, height in sizes:
        try:
            make_image(width, height)
        except Exception as error:
            if settings.compile:
                why = f"the warm-up failed: use null. {one_line(error)}."
                raise SettingsError(f"config.yaml, compile: {why}") from error
            # Other requests may succeed, such as smaller ones.
            logger.exception("The warm-up failed. The replica still serves requests.")
    if settings.compile:
        # Cases that the warm-up did not run stay uncompiled, in every thread: no request waits for a compiler.
        torch.compiler.set_stance("eager_on_recompile")


def compile_blocks(denoiser: Any) -> None:
    """Compile the blocks when they are first used. Raises SettingsError."""
    try:
        # One compilation for all sizes, as there are too many to warm up each.
        denoiser.compile_repeated_blocks(dynamic=True)
    except ValueError as error:
        name = type(denoiser).__name__
        raise SettingsError(f"config.yaml, compile: a {name} lists no repeated blocks: use null.") from error

"""Makes the first images inside load(), and compiles for them, where config.yaml asks for it."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from cold_start.pipeline import denoiser
from pipeline_settings import Settings, SettingsError, one_line

logger = logging.getLogger("uvicorn")


def warm_up(pipeline: Any, settings: Settings, make_image: Callable[[int, int], Any]) -> None:
    """Make one image of each size, so that kernels are loaded, or compiled, before the first request.

    make_image: takes width and height. Raises SettingsError if the blocks cannot be compiled.
    """
    defaults = settings.defaults
    with compiled_blocks(pipeline) if settings.compile else contextlib.nullcontext():
        for width, height in settings.warm_up_sizes or [[defaults.width, defaults.height]]:
            try:
                make_image(width, height)
            except Exception:
                if settings.compile:
                    raise
                # Other requests may succeed, such as smaller ones.
                logger.exception("The warm-up failed, and the replica goes on.")


@contextlib.contextmanager
def compiled_blocks(pipeline: Any) -> Iterator[None]:
    """Compile the blocks while the warm-up runs within, and nothing afterwards. Raises SettingsError."""
    import torch

    model = denoiser(pipeline)
    try:
        # For every size at once: there are too many to warm up each.
        model.compile_repeated_blocks(dynamic=True)
    except ValueError as error:
        name = type(model).__name__
        raise SettingsError(f"config.yaml, compile: a {name} names no blocks that repeat, so use null.") from error
    try:
        yield
    except Exception as error:
        raise SettingsError(f"config.yaml, compile: the warm-up failed, so use null. {one_line(error)}.") from error
    # What the warm-up did not meet runs as it does without compiling, in every thread: no request waits for a compiler.
    torch.compiler.set_stance("eager_on_recompile")

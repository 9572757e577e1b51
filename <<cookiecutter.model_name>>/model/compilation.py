"""Compiles the repeated blocks of the UNet or transformer, where config.yaml asks for it."""

import contextlib
from collections.abc import Iterator
from typing import Any

from model.pipeline import denoiser
from model.settings import SettingsError, one_line


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

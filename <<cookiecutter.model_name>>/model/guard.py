"""Serializes work on the device, cleans up after faults, and reports health."""

import gc
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fastapi import HTTPException

NO_MEMORY = "The GPU has too little memory for this request: ask for a smaller width or height."
NO_NUMBERS = "The model produced NaN instead of an image: change guidance_scale or num_inference_steps."


class NotANumberError(ArithmeticError):
    """An image contains NaN or infinity."""


class Guard:
    """Runs work on the pipeline, and knows whether the next request can succeed."""

    def __init__(self) -> None:
        # One, as a pipeline keeps state between steps: two requests must not share it. It keeps the order of arrival.
        self._thread = ThreadPoolExecutor(1)
        self._dtypes: dict[Any, set[Any]] = {}
        self._failed = False

    def watch(self, pipeline: Any, make_usual: Callable[[], Any]) -> None:
        """Remember the models' dtypes, which a fault must not change, and check decoded images for NaN.

        make_usual: generates a plain image, which any healthy replica can.
        """
        self._dtypes = {part: _dtypes(part) for part in pipeline.components.values() if hasattr(part, "parameters")}
        self._make_usual = make_usual
        # In the decoder, because the pipeline turns infinity into white.
        pipeline.vae.decoder.register_forward_hook(_refuse_what_is_no_number)

    def is_healthy(self) -> bool:
        """Return False before watch(), and after a fault of the device or the weights until an image succeeds."""
        return bool(self._dtypes) and not self._failed

    def submit(self, work: Callable[..., Any], *given: Any) -> "Future[tuple[Any, float]]":
        """Run work after all that was submitted before. The result: what it returns, and the seconds that it took.

        The result raises HTTPException: 503 if memory ran out, 500 for NaN instead of an image; else what work raises.
        """
        return self._thread.submit(self._run, work, *given)

    def _run(self, work: Callable[..., Any], *given: Any) -> tuple[Any, float]:
        started = time.perf_counter()
        try:
            result = work(*given)
        except Exception as error:
            # Its frames hold the tensors that filled the memory.
            for each in filter(None, (error, error.__context__)):
                traceback.clear_frames(each.__traceback__)
            fault = error
        else:
            self._failed = False
            return result, time.perf_counter() - started
        # Out of the except, which holds them too.
        raise self._recover(fault)

    def _recover(self, fault: Exception) -> Exception:
        """Restore the pipeline after fault, and return the exception for the client."""
        import torch

        # cuBLAS and cuDNN raise plain RuntimeErrors; SANA's pipelines raise a warning about the error.
        full = any(isinstance(each, torch.OutOfMemoryError) for each in (fault, fault.__context__))
        full |= "ALLOC_FAILED" in str(fault)
        device = isinstance(fault, torch.AcceleratorError) or "CUDA error" in str(fault) or "cuDNN error" in str(fault)
        # Most device faults are permanent, so the process must be replaced. A later image clears the flag.
        self._failed |= device and not full
        self._clean_up()
        if isinstance(fault, NotANumberError):
            # An odd request may produce NaN, but broken weights always do: try a plain image.
            try:
                self._make_usual()
            except Exception:
                self._failed = True
            self._clean_up()
            return HTTPException(500, NO_NUMBERS)
        return HTTPException(503, NO_MEMORY) if full else fault

    def _clean_up(self) -> None:
        import torch

        try:
            for model, dtypes in self._dtypes.items():
                # A fault may leave the VAE in float32, in which some pipelines decode.
                if _dtypes(model) != dtypes:
                    (dtype,) = dtypes
                    model.to(dtype=dtype)
            gc.collect()
            torch.cuda.empty_cache()
        except Exception:
            self._failed = True


def _refuse_what_is_no_number(_decoder: Any, _latents: Any, decoded: Any) -> None:
    if not decoded.isfinite().all():
        raise NotANumberError


def _dtypes(model: Any) -> set[Any]:
    return {parameter.dtype for parameter in model.parameters()}

"""Owns all that touches the device: one piece of work at a time, what a fault leaves behind, and health."""

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
    """An image holds NaN or infinity."""


class Guard:
    """Runs work on the pipeline, and knows whether the next can succeed."""

    def __init__(self) -> None:
        # One, as a pipeline keeps state between steps: two requests must not share it. It keeps the order of arrival.
        self._thread = ThreadPoolExecutor(1)
        self._dtypes: dict[Any, set[Any]] = {}
        self._failed = False

    def watch(self, pipeline: Any, make_usual: Callable[[], Any]) -> None:
        """Remember the dtypes of the pipeline's models, which a fault must not change, and look at what they decode.

        make_usual: makes an image as any healthy replica can.
        """
        self._dtypes = {part: _dtypes(part) for part in pipeline.components.values() if hasattr(part, "parameters")}
        self._make_usual = make_usual
        # Here, as the pipeline makes white of infinity.
        pipeline.vae.decoder.register_forward_hook(_refuse_what_is_no_number)

    def is_healthy(self) -> bool:
        """Return False before watch(), and while the last that was seen of the device or the weights is a fault."""
        return bool(self._dtypes) and not self._failed

    def submit(self, work: Callable[[], Any]) -> "Future[tuple[Any, float]]":
        """Run work after all that was submitted before. The result: what it returns, and the seconds that it took.

        The result raises HTTPException: 503 if memory ran out, 500 for NaN instead of an image; else what work raises.
        """
        return self._thread.submit(self._run, work)

    def _run(self, work: Callable[[], Any]) -> tuple[Any, float]:
        started = time.perf_counter()
        try:
            result = work()
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
        """Leave the pipeline as it was before fault, and return what to tell the client."""
        import torch

        # cuBLAS and cuDNN raise plain RuntimeErrors, and SANA's pipelines a warning about the error.
        full = any(isinstance(each, torch.OutOfMemoryError) for each in (fault, fault.__context__))
        full |= "ALLOC_FAILED" in str(fault)
        device = isinstance(fault, torch.AcceleratorError) or "CUDA error" in str(fault) or "cuDNN error" in str(fault)
        # Most of these are for good: the process can only be replaced. An image proves the others wrong.
        self._failed |= device and not full
        self._clean_up()
        if isinstance(fault, NotANumberError):
            # A visitor's odd request may make one. Broken weights make nothing else.
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
                # Some pipelines decode in float32, and put their VAE back afterwards.
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

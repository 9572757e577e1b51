"""The text-to-image model that Truss serves. What it loads is said in config.yaml."""

import copy
import functools
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse

from cold_start import lora, read_ahead
from cold_start.phases import ColdStart, without_garbage_collection
from cold_start.pipeline import denoiser, on_same_weights, read_pipeline
from cold_start.warm_up import warm_up
from cold_start.weights import check_weights, wait_for_download
from model import arguments, picture
from model.guard import Guard
from model.progress import Events, Progress
from model.request import SETTINGS, GeneratedImage, GenerationRequest, GenerationResponse, Timings

logger = logging.getLogger("uvicorn")


class Model:
    """Truss makes one, calls load() once in a thread, and then predict() for every request."""

    def __init__(self, lazy_data_resolver: Any, **_: Any) -> None:
        self._lazy_data_resolver = lazy_data_resolver
        self._pipeline: Any = None
        self._guard = Guard()
        self._cold_start = ColdStart()
        folder = Path(SETTINGS.weights_dir)
        read_ahead.begin(read_ahead.load_order(folder, SETTINGS.components, SETTINGS.weight_files))

    def load(self) -> None:
        """Everything here is part of the cold start. Raises WeightsError or SettingsError with a sentence."""
        with self._cold_start.reported() as phase:
            # Imported here and not above, while the weights are on their way.
            with phase("import_torch"), without_garbage_collection():
                import torch
            with phase("import_diffusers"), without_garbage_collection():
                import diffusers

                getattr(diffusers, SETTINGS.class_name, None)
            # Truss's live reload iterates over each module's __path__, and torch.classes has one that is no list.
            torch.classes.__path__ = []
            if torch.cuda.is_available():
                with phase("cuda_init"):
                    torch.cuda.synchronize()
            with phase("wait_for_weights"):
                wait_for_download(self._lazy_data_resolver)
                check_weights(SETTINGS)
            with phase("read_weights"):
                self._pipeline = read_pipeline(SETTINGS, "cuda" if torch.cuda.is_available() else "cpu")
            self._scheduler = copy.deepcopy(self._pipeline.scheduler)
            defaults = SETTINGS.defaults
            self._guard.watch(self._pipeline, lambda: self._usual_image(defaults.width, defaults.height))
            if SETTINGS.warm_up:
                with phase("warm_up"):
                    warm_up(self._pipeline, SETTINGS, lambda *size: self._guard.run(lambda: self._usual_image(*size)))

    # Union: of this notation alone Truss reads that there may be a stream.
    def predict(self, inputs: GenerationRequest, request: Request) -> Union[GenerationResponse, Iterator[str]]:  # noqa: UP007
        """Make the images one after the other, each from its own seed, so that each can be made again."""
        began = time.perf_counter()
        try:
            work = functools.partial(self._answer, inputs, arguments.of_request(inputs), began)
            if inputs.stream:
                return Events(work)  # type: ignore[return-value]  # Truss sends a Response as it is
            with request.state.watch_disconnect() as left:
                return work(Progress(left))
        except HTTPException as refusal:
            # Raised, it would stand in the log as a traceback of this code.
            logger.warning("Answered %s: %s", refusal.status_code, refusal.detail)
            answer = JSONResponse({"error": refusal.detail}, refusal.status_code)
            return answer  # type: ignore[return-value]  # the same

    # async: it must not wait for a thread while requests hold them.
    async def is_healthy(self) -> bool:
        """Return False before load() is done and after a fault that stays: the platform then replaces the replica."""
        return self._guard.is_healthy()

    def _answer(
        self, inputs: GenerationRequest, asked: arguments.Asked, began: float, progress: Progress
    ) -> GenerationResponse:
        seeds = arguments.seeds(inputs)

        def work() -> tuple[list[Any], list[str]]:
            progress.begin()
            # Here, as a tokenizer is no more for two requests at once than the pipeline is.
            if SETTINGS.lora_names:
                lora.choose(self._pipeline, arguments.loras(inputs))
            warnings = arguments.warnings(inputs, self._pipeline, asked)
            return [self._generate(asked, seed, progress) for seed in seeds], warnings

        (pictures, warnings), wait, generate = self._guard.run(work)
        started = time.perf_counter()
        level = SETTINGS.png_compress_level
        files = [picture.encode(made, inputs.output_format, inputs.quality, level) for made in pictures]
        images = [GeneratedImage(image=file, seed=seed) for file, seed in zip(files, seeds, strict=True)]
        ended = time.perf_counter()
        seconds = {"wait": wait, "generate": generate, **progress.seconds, "encode": ended - started}
        return GenerationResponse(
            images=images,
            content_type=f"image/{inputs.output_format}",
            warnings=warnings,
            timings=Timings(**seconds, cold_start=self._cold_start.first_answer(ended - began)),
        )

    def _usual_image(self, width: int, height: int) -> None:
        """Make an image that nobody gets: of few steps, without LoRAs."""
        if SETTINGS.lora_names:
            lora.choose(self._pipeline, {})
        few = SETTINGS.limits.min_steps
        usual = GenerationRequest(prompt="warm up", num_inference_steps=few, width=width, height=height)
        self._generate(arguments.of_request(usual), 0, Progress(threading.Event()))

    def _generate(self, asked: arguments.Asked, seed: int, progress: Progress) -> Any:
        """Return one picture. Raises NotANumberError."""
        pipeline = on_same_weights(self._pipeline, asked.other)
        # What a request that broke off left in it must not show in the next.
        pipeline.scheduler = copy.deepcopy(self._scheduler)
        own = arguments.of_image(seed, asked.arguments["num_inference_steps"], progress.step)
        with progress.image(denoiser(pipeline)):
            made = pipeline(**asked.arguments, **own).images[0]
        return asked.finish(made)

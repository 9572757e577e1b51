"""The text-to-image model that Truss serves. What it loads is said in config.yaml."""

import copy
import logging
import threading
import time
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse

from model import arguments, faststart, lora, picture
from model.guard import Guard, NotANumberError
from model.pipeline import image_to_image, read_pipeline
from model.request import SETTINGS, GeneratedImage, GenerationRequest, GenerationResponse, Timings
from model.weights import check_weights, wait_for_download

logger = logging.getLogger("uvicorn")


class Model:
    """Truss makes one, calls load() once in a thread, and then predict() for every request."""

    def __init__(self, lazy_data_resolver: Any, **_: Any) -> None:
        self._lazy_data_resolver = lazy_data_resolver
        self._pipeline = None
        self._image_to_image = None
        self._guard = Guard()
        self._cold_start: faststart.ColdStart | None = faststart.ColdStart()
        folder = Path(SETTINGS.weights_dir)
        faststart.read_ahead(faststart.load_order(folder, SETTINGS.components, SETTINGS.weight_files))

    def load(self) -> None:
        """Everything here is part of the cold start. Raises WeightsError or SettingsError with a sentence."""
        with self._cold_start.reported() as phase:
            # Imported here and not above, while the weights are on their way.
            with phase("import_torch"), faststart.without_garbage_collection():
                import torch
            with phase("import_diffusers"), faststart.without_garbage_collection():
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
            self._guard.watch(self._pipeline)
            if SETTINGS.warm_up:
                with phase("warm_up"):
                    self._warm_up()

    def predict(self, inputs: GenerationRequest, request: Request) -> GenerationResponse:
        """Make the images one after the other, each from its own seed, so that each can be made again."""
        try:
            return self._answer(inputs, request)
        except HTTPException as refusal:
            # Raised, it would stand in the log as a traceback of this code.
            logger.warning("Answered %s: %s", refusal.status_code, refusal.detail)
            return JSONResponse({"error": refusal.detail}, refusal.status_code)

    # async: it must not wait for a thread while requests hold them.
    async def is_healthy(self) -> bool:
        """Return False before load() is done and after a fault that stays: the platform then replaces the replica."""
        return self._guard.is_healthy()

    def _answer(self, inputs: GenerationRequest, request: Request) -> GenerationResponse:
        began = time.perf_counter()
        seeds, asked = arguments.seeds(inputs), arguments.of_request(inputs)

        def work() -> tuple[list[Any], list[str]]:
            # Here, as a tokenizer is no more for two requests at once than the pipeline is.
            if SETTINGS.lora_names:
                lora.choose(self._pipeline, arguments.loras(inputs))
            warnings = arguments.warnings(inputs, self._pipeline)
            return [self._generate(asked, seed, left) for seed in seeds], warnings

        with request.state.watch_disconnect() as left:
            (pictures, warnings), wait, generate = self._guard.run(work)
        started = time.perf_counter()
        images = [
            GeneratedImage(image=picture.encode(made, inputs.output_format, inputs.quality), seed=seed)
            for made, seed in zip(pictures, seeds, strict=True)
        ]
        ended = time.perf_counter()
        cold_start = self._first_answer(ended - began)
        return GenerationResponse(
            images=images,
            content_type=f"image/{inputs.output_format}",
            warnings=warnings,
            timings=Timings(wait=wait, generate=generate, encode=ended - started, cold_start=cold_start),
        )

    def _warm_up(self) -> None:
        """Make one image of the default size, so that kernels are loaded before the first request."""
        inputs = GenerationRequest(prompt="warm up", num_inference_steps=SETTINGS.limits.min_steps)
        try:
            self._guard.run(lambda: self._generate(arguments.of_request(inputs), 0, threading.Event()))
        except Exception:
            # Other requests may succeed, such as smaller ones.
            logger.exception("The warm-up failed, and the replica goes on.")

    def _generate(self, asked: dict[str, Any], seed: int, left: threading.Event) -> Any:
        """Return one picture. Raises NotANumberError."""
        import numpy

        pipeline = self._pipeline_for(asked)
        # What a request that broke off left in it must not show in the next.
        pipeline.scheduler = copy.deepcopy(self._scheduler)
        floats = pipeline(**asked, **arguments.of_image(seed, left.is_set)).images
        if not numpy.isfinite(floats).all():
            raise NotANumberError
        return pipeline.image_processor.numpy_to_pil(floats)[0]

    def _pipeline_for(self, asked: dict[str, Any]) -> Any:
        if "image" not in asked:
            return self._pipeline
        if self._image_to_image is None:
            self._image_to_image = image_to_image(self._pipeline, SETTINGS.image_to_image.class_name)
        return self._image_to_image

    def _first_answer(self, seconds: float) -> dict[str, float] | None:
        # Taken before it is looked at: with a higher predict_concurrency another answer may come first.
        cold_start, self._cold_start = self._cold_start, None
        if cold_start is None:
            return None
        cold_start.phases["first_image"] = seconds
        cold_start.report()
        return cold_start.rounded()

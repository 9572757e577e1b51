"""The text-to-image model that Truss serves. What it loads is said in config.yaml."""

import inspect
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request

from model import faststart, picture
from model.pipeline import image_to_image, read_pipeline
from model.request import MAX_SEED, STRENGTH, GeneratedImage, GenerationRequest, GenerationResponse, Timings
from model.weights import check_weights, wait_for_download


class Model:
    """Truss makes one, calls load() once in a thread, and then predict() for every request."""

    def __init__(self, config: dict[str, Any], lazy_data_resolver: Any, **_: Any) -> None:
        self._settings = config["model_metadata"]["pipeline"]
        self._lazy_data_resolver = lazy_data_resolver
        self._pipeline = None
        self._image_to_image = None
        self._device_failed = False
        # A pipeline's scheduler keeps state between steps: two requests must not share it.
        self._lock = threading.Lock()
        self._cold_start: faststart.ColdStart | None = faststart.ColdStart()
        weights, components, files = (self._settings[key] for key in ("weights_dir", "components", "weight_files"))
        faststart.read_ahead(faststart.load_order(Path(weights), components, files))

    def load(self) -> None:
        """Everything here is part of the cold start. Raises WeightsError if the cache is not whole."""
        phase = self._cold_start.phase
        # Imported here and not above, while the weights are on their way.
        with phase("import_torch"), faststart.without_garbage_collection():
            import torch
        with phase("import_diffusers"), faststart.without_garbage_collection():
            import diffusers

            getattr(diffusers, self._settings["class_name"])
        # Truss's live reload iterates over each module's __path__, and torch.classes has one that is no list.
        torch.classes.__path__ = []
        if torch.cuda.is_available():
            with phase("cuda_init"):
                torch.cuda.synchronize()
        with phase("wait_for_weights"):
            wait_for_download(self._lazy_data_resolver)
            check_weights(self._settings)
        with phase("read_weights"):
            self._pipeline = read_pipeline(self._settings)
        if self._settings["warm_up"]:
            with phase("warm_up"):
                self._warm_up()
        self._cold_start.report()

    def predict(self, inputs: GenerationRequest, request: Request) -> GenerationResponse:
        """Make the images one after the other, each from its own seed, so that each can be made again."""
        first_seed = secrets.randbelow(MAX_SEED + 1) if inputs.seed is None else inputs.seed
        seeds = [(first_seed + i) % (MAX_SEED + 1) for i in range(inputs.num_images)]
        start_image = inputs.start_image()
        started = time.perf_counter()
        with self._lock, request.state.watch_disconnect() as disconnected:
            pictures = [self._generate(inputs, start_image, seed, disconnected) for seed in seeds]
        generated = time.perf_counter()
        images = [
            GeneratedImage(image=picture.encode(made, inputs.output_format, inputs.quality), seed=seed)
            for made, seed in zip(pictures, seeds, strict=True)
        ]
        encoded = time.perf_counter()
        return GenerationResponse(
            images=images,
            content_type=f"image/{inputs.output_format}",
            timings=Timings(
                generate=generated - started,
                encode=encoded - generated,
                cold_start=self._first_answer(encoded - started),
            ),
        )

    def is_healthy(self) -> bool:
        """Return False before load() is done and after a CUDA error, so that the platform replaces the replica."""
        return self._pipeline is not None and not self._device_failed

    def _warm_up(self) -> None:
        """Make one image of the default size in one step, so that kernels are loaded before the first request."""
        inputs = GenerationRequest(prompt="warm up", num_inference_steps=1)
        self._generate(inputs, None, 0, threading.Event())

    def _generate(self, inputs: GenerationRequest, start_image: Any, seed: int, disconnected: threading.Event) -> Any:
        import torch

        def stop_if_disconnected(*step: Any) -> Any:
            if disconnected.is_set():
                raise HTTPException(status_code=499, detail="The client disconnected.")
            return step[-1]

        pipeline = self._pipeline_for(start_image)
        arguments = {
            "prompt": inputs.prompt,
            "num_inference_steps": inputs.num_inference_steps,
            self._settings["guidance_parameter"]: inputs.guidance_scale,
            "width": inputs.width,
            "height": inputs.height,
            # A generator on the CPU gives the same noise on every device.
            "generator": torch.Generator("cpu").manual_seed(seed),
            "callback_on_step_end": stop_if_disconnected,
            "callback": stop_if_disconnected,
            "image": start_image,
            "strength": inputs.strength or STRENGTH,
            **self._settings["call_kwargs"],
        }
        if inputs.negative_prompt:
            arguments["negative_prompt"] = inputs.negative_prompt
        # Families differ: some image-to-image pipelines take the size from the image, PixArt has the older callback.
        known = inspect.signature(pipeline.__call__).parameters
        try:
            made = pipeline(**{name: value for name, value in arguments.items() if name in known}).images[0]
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise HTTPException(
                status_code=503,
                detail="The GPU has too little memory for this request: ask for a smaller width or height.",
            ) from error
        except torch.AcceleratorError:
            # Most CUDA errors are for good: the process can only be replaced. An image proves the others wrong.
            self._device_failed = True
            raise
        self._device_failed = False
        return made

    def _pipeline_for(self, start_image: Any) -> Any:
        if start_image is None:
            return self._pipeline
        if self._image_to_image is None:
            self._image_to_image = image_to_image(self._pipeline, self._settings["image_to_image"])
        return self._image_to_image

    def _first_answer(self, seconds: float) -> dict[str, float] | None:
        # Taken before it is looked at: with a higher predict_concurrency another answer may come first.
        cold_start, self._cold_start = self._cold_start, None
        if cold_start is None:
            return None
        cold_start.phases["first_image"] = seconds
        cold_start.report()
        return cold_start.rounded()

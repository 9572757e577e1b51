"""The text-to-image model that Truss serves. What it loads is said in config.yaml."""

import base64
import io
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request

from model import faststart
from model.request import MAX_SEED, GeneratedImage, GenerationRequest, GenerationResponse, Timings
from model.weights import check_weights


class Model:
    """Truss makes one, calls load() once in a thread, and then predict() for every request."""

    def __init__(self, config: dict[str, Any], lazy_data_resolver: Any, **_: Any) -> None:
        self._settings = config["model_metadata"]["pipeline"]
        self._weights_dir = Path(self._settings["weights_dir"])
        self._lazy_data_resolver = lazy_data_resolver
        self._pipeline = None
        # A pipeline's scheduler keeps state between steps: two requests must not share it.
        self._lock = threading.Lock()
        self._cold_start: faststart.ColdStart | None = faststart.ColdStart()
        faststart.read_ahead(self._weights_dir)

    def load(self) -> None:
        """Everything here is part of the cold start. Raises WeightsError if the cache is not whole."""
        phase = self._cold_start.phase
        # torch and diffusers are imported here and not above, while the weights are on their way.
        with phase("imports"), faststart.without_garbage_collection():
            import diffusers
            import torch

            pipeline_class = getattr(diffusers, self._settings["class_name"])
        with phase("wait_for_weights"):
            self._lazy_data_resolver.block_until_download_complete()
            check_weights(self._weights_dir, self._settings["weight_files"])
        with phase("read_weights"):
            cuda = torch.cuda.is_available()
            self._pipeline = pipeline_class.from_pretrained(
                self._weights_dir,
                # Half precision is slow on a CPU, and some operators have none.
                dtype=getattr(torch, self._settings["dtype"]) if cuda else torch.float32,
                variant=self._settings["variant"],
                device_map="cuda" if cuda else "cpu",
                use_safetensors=True,
                local_files_only=True,
                **self._settings["load_kwargs"],
            )
        self._pipeline.set_progress_bar_config(disable=True)
        self._cold_start.report()

    def predict(self, inputs: GenerationRequest, request: Request) -> GenerationResponse:
        """Make the images one after the other, each from its own seed, so that each can be made again."""
        first_seed = secrets.randbelow(MAX_SEED + 1) if inputs.seed is None else inputs.seed
        seeds = [(first_seed + i) % (MAX_SEED + 1) for i in range(inputs.num_images)]
        started = time.perf_counter()
        with self._lock, request.state.watch_disconnect() as disconnected:
            pictures = [self._generate(inputs, seed, disconnected) for seed in seeds]
        generated = time.perf_counter()
        images = [
            GeneratedImage(image=_encode(picture, inputs), seed=seed)
            for picture, seed in zip(pictures, seeds, strict=True)
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
        return self._pipeline is not None

    def _generate(self, inputs: GenerationRequest, seed: int, disconnected: threading.Event) -> Any:
        import torch

        def stop_if_disconnected(_pipeline: Any, _step: int, _timestep: Any, tensors: dict) -> dict:
            if disconnected.is_set():
                raise HTTPException(status_code=499, detail="The client disconnected.")
            return tensors

        optional = {"negative_prompt": inputs.negative_prompt} if inputs.negative_prompt else {}
        try:
            return self._pipeline(
                prompt=inputs.prompt,
                num_inference_steps=inputs.num_inference_steps,
                guidance_scale=inputs.guidance_scale,
                width=inputs.width,
                height=inputs.height,
                # A generator on the CPU gives the same noise on every device.
                generator=torch.Generator("cpu").manual_seed(seed),
                callback_on_step_end=stop_if_disconnected,
                **optional,
            ).images[0]
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise HTTPException(
                status_code=503,
                detail="The GPU has too little memory for this request: ask for a smaller width or height.",
            ) from error

    def _first_answer(self, seconds: float) -> dict[str, float] | None:
        if self._cold_start is None:
            return None
        cold_start, self._cold_start = self._cold_start, None
        cold_start.phases["first_image"] = seconds
        cold_start.report()
        return cold_start.rounded()


def _encode(picture: Any, inputs: GenerationRequest) -> str:
    buffer = io.BytesIO()
    options = {} if inputs.output_format == "png" else {"quality": inputs.quality}
    picture.save(buffer, format=inputs.output_format, **options)
    return base64.b64encode(buffer.getvalue()).decode()

"""The text-to-image model that Truss serves, as configured in config.yaml."""

import copy
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse

from cold_start import lean_imports, read_ahead
from cold_start.phases import ColdStart, without_garbage_collection
from cold_start.pipeline import read_pipeline
from cold_start.safety import read_safety
from cold_start.warm_up import warm_up
from cold_start.weights import check_weights, wait_for_download
from metrics import counted
from model import arguments, images
from model.guard import Guard
from model.pipelines import Loras, denoiser, on_same_weights
from model.progress import Events, Progress
from model.request import GeneratedImage, GenerationRequest, GenerationResponse, Timings, request_model
from pipeline_settings import ImageToImage, Inpaint, Settings, read_settings

logger = logging.getLogger("uvicorn")

UNSAFE = "The safety check refuses an image of this request: change the prompt or the seed."

# At import, not in Model.__init__, because Truss takes /schema from the annotation of predict().
SETTINGS = read_settings(Path(__file__).resolve().parent.parent / "config.yaml")
if TYPE_CHECKING:
    Inputs = GenerationRequest
else:
    Inputs = request_model(SETTINGS)


class Model:
    """Truss creates one, calls load() once in a thread, then predict() for every request."""

    def __init__(self, lazy_data_resolver: Any, settings: Settings = SETTINGS, **_: Any) -> None:
        self._lazy_data_resolver = lazy_data_resolver
        self._settings = settings
        # Keyed by how a request starts: from noise (None), an image, or an image with a mask.
        self._pipelines: dict[ImageToImage | Inpaint | None, Any] = {}
        self._guard = Guard()
        self._cold_start = ColdStart()
        folder = Path(settings.weights_dir)
        self._imported = read_ahead.begin(read_ahead.load_order(folder, settings.components, settings.weight_files))

    def load(self) -> None:
        """Everything here is part of the cold start. Raises WeightsError or SettingsError with a sentence."""
        try:
            self._load()
        finally:  # also after a fault
            lean_imports.finish()
            self._cold_start.report()

    def _load(self) -> None:
        settings, defaults, phase = self._settings, self._settings.defaults, self._cold_start.phase
        # Imported here, while the weights are being downloaded.
        with phase("import_torch"), without_garbage_collection():
            import torch
        with phase("import_diffusers"), without_garbage_collection():
            lean_imports.import_diffusers(settings.class_name, plainly=bool(settings.compile))
            images.prepare()
        # Truss's live reload iterates over each module's __path__, and that of torch.classes is not a list.
        torch.classes.__path__ = []
        if torch.cuda.is_available():
            with phase("cuda_init"):
                torch.cuda.synchronize()
        self._imported()
        with phase("wait_for_weights"):
            wait_for_download(self._lazy_data_resolver)
            check_weights(settings)
        with phase("read_weights"):
            device = "cuda" if torch.cuda.is_available() else "cpu"
            pipeline, self._is_unsafe = read_pipeline(settings, device), read_safety(settings, device)
            self._loras = Loras(pipeline, settings)
        self._pipelines = {other: on_same_weights(pipeline, other) for other in (None, *settings.others)}
        self._scheduler = copy.deepcopy(pipeline.scheduler)
        self._guard.watch(pipeline, lambda: self._usual_image(defaults.width, defaults.height))
        if settings.warm_up:
            with phase("warm_up"):
                warm_up(
                    denoiser(pipeline), settings, lambda *size: self._guard.submit(self._usual_image, *size).result()
                )

    # Union: Truss recognizes streaming only in this notation.
    def predict(self, inputs: Inputs, request: Request) -> Union[GenerationResponse, Iterator[str]]:  # noqa: UP007
        """Generate the images one after the other, each from its own seed, so that each can be reproduced."""
        began = time.perf_counter()
        try:
            with counted():
                asked = arguments.of_request(self._settings, inputs)
            begin = functools.partial(self._begin, inputs, asked, began)
            if inputs.stream:
                return Events(begin)  # type: ignore[return-value]  # Truss sends a Response as it is
            with request.state.watch_disconnect() as left:
                return begin(Progress(left))()
        except HTTPException as refusal:
            # If raised, it would be logged with a traceback of this code.
            logger.warning("Answered %s: %s", refusal.status_code, refusal.detail)
            answer = JSONResponse({"error": refusal.detail}, refusal.status_code)
            return answer  # type: ignore[return-value]  # the same

    # async: it must not wait for a thread while requests hold them.
    async def is_healthy(self) -> bool:
        """Return False before load() is done and after a permanent fault: the platform then replaces the replica."""
        return self._guard.is_healthy()

    def _begin(
        self, inputs: GenerationRequest, asked: arguments.Asked, began: float, progress: Progress
    ) -> Callable[[], GenerationResponse]:
        """Get in line, and return what waits for the images and answers."""
        settings, seeds = self._settings, arguments.seeds(inputs)

        def work() -> tuple[list[Any], list[str], float]:
            wait = progress.begin()
            # Here, as a tokenizer is no more for two requests at once than the pipeline is.
            if hasattr(self._pipelines[None], "processor"):
                arguments.check_prompts(settings, inputs, self._pipelines[None])
            with self._loras.chosen(arguments.loras(settings, inputs)):
                made = [self._generate(asked, seed, progress) for seed in seeds]
            if any(map(self._is_unsafe, made)):
                raise HTTPException(422, UNSAFE)
            return made, arguments.warnings(settings, inputs, self._pipelines[asked.other], asked), wait

        work_done = self._guard.submit(work)

        @counted(began)
        def answer() -> GenerationResponse:
            (made, told, wait), generate = work_done.result()
            started, level, sampler = time.perf_counter(), settings.png_compress_level, type(self._scheduler).__name__
            files = []
            for image, seed in zip(made, seeds, strict=True):
                text = arguments.described(settings, inputs, seed, sampler)
                file = images.encode(image, inputs.output_format, inputs.quality, level, text)
                files.append(GeneratedImage(image=file, seed=seed))
            ended = time.perf_counter()
            seconds = {"wait": wait, "generate": generate, **progress.seconds, "encode": ended - started}
            timings = Timings(**seconds, cold_start=self._cold_start.first_answer(ended - began))
            kind = f"image/{inputs.output_format}"
            return GenerationResponse(images=files, content_type=kind, warnings=told, timings=timings)

        return answer

    def _usual_image(self, width: int, height: int) -> None:
        """Make an image that nobody gets: of few steps, without LoRAs."""
        settings = self._settings
        usual: dict[str, Any] = {"prompt": "warm up", "num_inference_steps": settings.limits.min_steps}
        usual |= {"image": images.plain("gray")} if settings.needs_image else {}
        request = request_model(settings)(**usual, width=width, height=height)
        self._generate(arguments.of_request(settings, request), 0, Progress(threading.Event()))

    def _generate(self, asked: arguments.Asked, seed: int, progress: Progress) -> Any:
        """Return one image. Raises NotANumberError."""
        pipeline = self._pipelines[asked.other]
        # A fresh copy, so that an interrupted request leaves no state behind.
        pipeline.scheduler = copy.deepcopy(self._scheduler)
        own = arguments.of_image(self._settings, seed, asked.arguments["num_inference_steps"], progress.step)
        with progress.image(denoiser(pipeline)):
            made = pipeline(**asked.arguments, **own).images[0]
        return asked.finish(made)

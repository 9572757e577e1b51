"""Two servers of the emitted model for the fake platform: the real one, and one that starts at once.

The second runs in the platform's own process. It checks requests with the project's model/request.py, whose schema it
tells as Truss does, and paints each image in one color.
"""

import asyncio
import base64
import contextlib
import io
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from pydantic import ValidationError

OWN = {"X-BASETEN-ERROR-SOURCE": "04", "X-BASETEN-ERROR-CODE": "700"}
COLD_START = ("server_start", "import_torch", "import_diffusers", "wait_for_weights", "read_weights", "first_image")


class RealServer:
    """The local Truss server of a project, in a process of its own."""

    def __init__(self, local_server: ModuleType, folder: Path, number: int) -> None:
        port = local_server.free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._stop = local_server.stop
        with (folder / f"replica-{number}.log").open("w") as log:
            self.process = local_server.start(folder / "app", port, stdout=log, stderr=log)

    def alive(self) -> bool:
        return self.process.poll() is None

    async def stop(self) -> None:
        await asyncio.to_thread(self._stop, self.process)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield  # they are the platform's


class InstantServer:
    """image_seconds, load_seconds: what an image and a start take."""

    def __init__(self, port: int, load_seconds: float, image_seconds: float) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.began = time.monotonic()
        self.load_seconds, self.image_seconds = load_seconds, image_seconds
        self.first, self.turn = True, asyncio.Lock()
        self.requests = request_model()
        app = FastAPI()
        app.add_api_route("/v1/models/model/loaded", self.loaded)
        app.add_api_route("/v1/models/model/schema", self.schema)
        app.add_api_route("/v1/models/model:predict", self.predict, methods=["POST"])
        self.server = _Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        self.task = asyncio.create_task(self.server.serve())

    def alive(self) -> bool:
        return not self.task.done()

    async def stop(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        await self.task

    async def loaded(self) -> Response:
        if time.monotonic() - self.began < self.load_seconds:
            return JSONResponse({"error": "model is not ready"}, 503, headers=OWN)
        return JSONResponse({})

    async def schema(self) -> dict[str, Any]:
        from model.request import GenerationResponse

        models = {"input_schema": self.requests, "output_schema": GenerationResponse}
        told = {name: model.model_json_schema() for name, model in models.items()}
        return {**told, "supports_streaming": False}

    async def predict(self, request: Request) -> Response:
        try:
            asked = self.requests.parse_raw(await request.body())
        except ValidationError as error:
            lines = [f"`{'.'.join(map(str, each['loc']))}`: {each['msg']}." for each in error.errors()]
            return JSONResponse({"error": "\n  ".join(["Input Parsing Error:", *lines])}, 400, headers=OWN)
        if asked.stream:
            return StreamingResponse(self.events(asked), media_type="text/event-stream")
        async with self.turn:
            await asyncio.sleep(self.image_seconds)
            return JSONResponse(await asyncio.to_thread(self.answer, asked))

    async def events(self, asked: Any) -> AsyncIterator[str]:
        yield event("queued", "{}")
        async with self.turn:
            for image in range(asked.num_images):
                for step in range(asked.num_inference_steps):
                    await asyncio.sleep(self.image_seconds / asked.num_inference_steps)
                    told = {"image": image + 1, "step": step + 1, "of": asked.num_inference_steps}
                    yield event("step", json.dumps(told))
            answer = self.answer(asked)
            for each in answer["images"]:
                yield event("image", *re.findall(".{1,1000}", each.pop("image")))
            yield event("result", json.dumps(answer))

    def answer(self, asked: Any) -> dict[str, Any]:
        seed = asked.seed or 0
        images = []
        for number in range(seed, seed + asked.num_images):
            file = io.BytesIO()
            color = (number % 256, number // 256 % 256, len(asked.prompt) % 256)
            Image.new("RGB", (asked.width, asked.height), color).save(file, asked.output_format)
            images.append({"image": base64.b64encode(file.getvalue()).decode(), "seed": number})
        names = ("wait", "generate", "text", "steps", "decode", "encode")
        timings: dict[str, Any] = {**dict.fromkeys(names, self.image_seconds / 4), "cold_start": None}
        if self.first:
            timings["cold_start"] = dict.fromkeys(COLD_START, self.load_seconds / len(COLD_START))
            self.first = False
        words = len(asked.prompt.split())
        warnings = [f"prompt: the model reads 75 tokens, this has {words}."] if words > 75 else []
        return {
            "images": images,
            "content_type": f"image/{asked.output_format}",
            "warnings": warnings,
            "timings": timings,
        }


def event(name: str, *data: str) -> str:
    return "\n".join([f"event: {name}", *(f"data: {line}" for line in data), "", ""])


PROJECT = Path()


def use(project: Path) -> None:
    """Serve the requests of a project from now on: its model/request.py needs nothing of what the image holds."""
    global PROJECT
    PROJECT = project
    sys.path[:0] = [str(project), str(project / "packages")]


def request_model() -> Any:
    from model.request import request_model
    from pipeline_settings import read_settings

    return request_model(read_settings(PROJECT / "config.yaml"))

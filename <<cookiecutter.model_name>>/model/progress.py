"""Progress of a request: seconds of each stage, and an event for each step and image of a stream."""

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from fastapi import HTTPException
from fastapi.responses import Response, StreamingResponse

logger = logging.getLogger("uvicorn")

# Truss's answer to an unexpected error without a stream.
FAILED = "Internal Server Error (in model/chainlet)."
# Proxies may drop a connection that is idle for a minute.
SILENT_SECONDS = 15
# Many clients read a stream line by line, and stop at 64 kB. Base64 may have line breaks, JSON strings may not.
LINE_CHARACTERS = 2**15
# Otherwise nginx and similar proxies buffer events.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Progress:
    """Progress of one request. seconds: by stage, for all its images. left: set when the client has disconnected.

    text: until the first call of the UNet or transformer, which includes encoding the start image. steps: until the
    last step. decode: until the image is ready. Each boundary waits for the device: twice per image, and after every
    step that is reported.
    """

    def __init__(self, left: threading.Event, tell: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.seconds = {"text": 0.0, "steps": 0.0, "decode": 0.0}
        self._left, self._tell = left, tell
        self._image = self._step = 0
        self._began = self._border = time.perf_counter()

    def begin(self) -> float:
        """Start the clock, as its turn has come. Returns the seconds until then."""
        asked, self._began = self._began, time.perf_counter()
        self._border = self._began
        return self._began - asked

    @contextlib.contextmanager
    def image(self, denoiser: Any) -> Iterator[None]:
        """Time one image in this block. denoiser: the UNet or transformer. Raises HTTPException (499): see step()."""
        self._image, self._step = self._image + 1, 0
        self._end("text")

        def at_first_step(*_: Any) -> None:
            hook.remove()
            self._end("text", wait=True)

        hook = denoiser.register_forward_pre_hook(at_first_step)
        try:
            yield
        finally:
            hook.remove()
        self._end("decode")

    def step(self, count: int) -> None:
        """Count one of count steps. Raises HTTPException (499), which ends the work, if the client has disconnected."""
        self._step += 1
        self._end("steps", wait=self._tell is not None or self._step == count)
        if self._tell:
            seconds = round(self._border - self._began, 3)
            self._tell({"image": self._image, "step": self._step, "of": count, "seconds": seconds})

    def _end(self, stage: str, wait: bool = False) -> None:
        import torch

        if self._left.is_set():
            raise HTTPException(499, "The client disconnected.")
        # GPU work runs asynchronously.
        if wait and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        before, self._border = self._border, time.perf_counter()
        self.seconds[stage] += self._border - before


class Events(Response):
    """The answer as server-sent events: queued, each step, each image as base64, the rest of the result; or an error.

    Not a StreamingResponse, for which Truss makes the next request wait until it is sent: a slow reader would block
    everybody, and waiting clients would get no event. guard.py serializes the work.
    """

    def __init__(self, begin: Callable[[Progress], Callable[[], Any]]) -> None:
        """begin: gets in line, and returns what waits for the result, a GenerationResponse. That runs in a thread."""
        super().__init__()
        self._begin = begin
        self._left = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            sent = StreamingResponse(self._events(), headers=HEADERS, media_type="text/event-stream")
            await sent(scope, receive, send)
        finally:  # all sent, or the client disconnected
            self._left.set()

    async def _events(self) -> AsyncIterator[str]:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[str]()

        def send(text: str) -> None:
            loop.call_soon_threadsafe(events.put_nowait, text)

        result = self._begin(Progress(self._left, lambda step: send(_event("step", json.dumps(step)))))
        work = asyncio.create_task(asyncio.to_thread(self._run, result, send))
        yield _event("queued", "{}")
        while True:
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    text = await events.get()
            except TimeoutError:
                text = ": still there\n\n"
            if not text:
                break
            yield text
        await work

    def _run(self, result: Callable[[], Any], send: Callable[[str], Any]) -> None:
        """Send all but the first event, and at the end "": whatever happens, the stream must not stay open."""
        try:
            made = result()
            for each in made.images:
                starts = range(0, len(each.image), LINE_CHARACTERS)
                send(_event("image", *(each.image[start : start + LINE_CHARACTERS] for start in starts)))
            send(_event("result", made.model_dump_json(exclude={"images": {"__all__": {"image"}}})))
        except HTTPException as refusal:
            logger.warning("Answered %s: %s", refusal.status_code, refusal.detail)
            send(_event("error", json.dumps({"error": refusal.detail, "status": refusal.status_code})))
        except Exception:
            logger.exception(FAILED)
            send(_event("error", json.dumps({"error": FAILED, "status": 500})))
        finally:
            send("")


def _event(name: str, *data: str) -> str:
    return "\n".join([f"event: {name}", *(f"data: {line}" for line in data), "", ""])

"""One watcher for all visitors of the page: it wakes the model, follows its start, and tells it in words."""

import asyncio
import time

from fast_truss.api import AsyncClient
from fast_truss.errors import ClientError
from fast_truss.rules import Status

WORDS = {
    "SCALED_TO_ZERO": "Waking the model",
    "WAKING_UP": "Waking: getting a machine",
    "LOADING_MODEL": "Waking: loading the model",
}
# A visitor who comes so soon after the last look sees what it saw.
FRESH_SECONDS = 10.0
# While it asks how long a start usually takes, the phase on the page stands still.
HINT_SECONDS = 2.0
WEEK_MS = 7 * 24 * 3600 * 1000


class Watcher:
    """However many visitors wait, Baseten is asked once a second, and not at all while nobody waits."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._task: asyncio.Task[None] | None = None
        self._started = self._ended = float("-inf")
        self._status: Status | None = None
        self._error: str | None = None
        self._usual: float | None = None
        self._usual_known = client.local

    def start(self) -> None:
        """Wake the model and watch it, unless that is under way or just done."""
        fresh = self.ready and time.monotonic() - self._ended < FRESH_SECONDS
        if self.waiting or fresh:
            return
        self._started = time.monotonic()
        self._status = self._error = None
        self._task = asyncio.create_task(self._follow())

    @property
    def waiting(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def ready(self) -> bool:
        return self._status is not None and self._status.ready

    @property
    def kind(self) -> str:
        """error, ready or waking."""
        return "error" if self._error else "ready" if self.ready else "waking"

    def words(self) -> str:
        """Return the phase, the seconds so far, and how long it usually takes if that is known."""
        if self._error:
            return self._error
        if self.ready:
            return "Ready"
        phase = WORDS.get(self._status.status, "Waking: starting") if self._status else "Waking the model"
        usual = f", usually {self._usual:.0f} s" if self._usual else ""
        return f"{phase} ({time.monotonic() - self._started:.0f} s{usual})"

    async def _follow(self) -> None:
        try:
            await self._client.wake()
            async for status in self._client.watch():
                self._status = status
                if not status.ready:
                    await self._ask_usual()
        except ClientError as error:
            self._error = str(error)
        finally:
            self._ended = time.monotonic()

    async def _ask_usual(self) -> None:
        if self._usual_known:
            return
        self._usual_known = True
        now = int(time.time() * 1000)
        try:
            window = {"start_epoch_millis": now - WEEK_MS, "end_epoch_millis": now}
            summary = await self._client.startups_summary(HINT_SECONDS, **window)
        except ClientError:
            return  # only a hint
        if summary and summary.total_duration_ms.p50_ms:
            self._usual = summary.total_duration_ms.p50_ms / 1000


def generating_words(seconds: float, step: int | None = None, steps: int | None = None) -> str:
    """Return what the page says while a picture is made. step, of steps: for a model that tells them."""
    if step is not None and steps:
        return f"Step {step} of {steps} ({seconds:.0f} s)"
    return f"Generating ({seconds:.0f} s)"

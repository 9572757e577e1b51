"""One watcher for all visitors of a page: it wakes the model, follows its start, and tells it in words."""

import asyncio
import contextlib
import time

from fast_truss import AsyncClient, Status
from fast_truss.errors import ClientError

PHASES = {"WAKING_UP": "Waking: getting a machine", "LOADING_MODEL": "Waking: loading the model"}
# A visitor who comes so soon after the last look sees what it saw.
FRESH_SECONDS = 10.0
# While it asks how long a start usually takes, the phase on the page stands still.
HINT_SECONDS = 2.0
WEEK_MS = 7 * 24 * 3600 * 1000


class Watcher:
    """However many visitors wait, Baseten is asked once a second, and not at all while nobody waits or looks."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._task: asyncio.Task[None] | None = None
        self._started = self._ended = float("-inf")
        self._status: Status | None = None
        self._error: str | None = None
        self._usual = "" if client.local else None

    def start(self) -> None:
        """Wake the model and watch it, unless that is under way or just done."""
        if not self.waiting and not (self.ready and self._fresh):
            self._started, self._status, self._error = time.monotonic(), None, None
            self._task = asyncio.create_task(self._follow())

    async def look(self) -> None:
        """Ask for the status, which wakes nothing, unless somebody just did."""
        if self.waiting or self._fresh:
            return
        self._ended = time.monotonic()
        try:
            self._status, self._error = await self._client.status(FRESH_SECONDS), None
        except ClientError as error:
            self._error = str(error)

    @property
    def waiting(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def ready(self) -> bool:
        return self._error is None and self._status is not None and self._status.ready

    @property
    def kind(self) -> str:
        """error, ready, waking or asleep."""
        return "error" if self._error else "ready" if self.ready else "waking" if self.waiting else "asleep"

    def words(self) -> str:
        """Return the phase, the seconds so far, and how long it usually takes if that is known."""
        phase = PHASES.get(self._status.status if self._status else "", "Waking the model")
        waking = f"{phase} ({time.monotonic() - self._started:.0f} s{self._usual or ''})"
        asleep = "Asleep: the next image wakes the model"
        return self._error or {"ready": "Ready", "waking": waking, "asleep": asleep}[self.kind]

    @property
    def _fresh(self) -> bool:
        return time.monotonic() - self._ended < FRESH_SECONDS

    async def _follow(self) -> None:
        try:
            await self._client.wake()
            async for status in self._client.watch():
                self._status = status
                if not status.ready and self._usual is None:
                    await self._ask_usual()
        except ClientError as error:
            self._error = str(error)
        finally:
            self._ended = time.monotonic()

    async def _ask_usual(self) -> None:
        self._usual, now = "", int(time.time() * 1000)
        window = {"start_epoch_millis": now - WEEK_MS, "end_epoch_millis": now}
        with contextlib.suppress(ClientError):  # only a hint
            summary = await self._client.startups_summary(HINT_SECONDS, **window)
            if summary and summary.total_duration_ms.p50_ms:
                self._usual = f", usually {summary.total_duration_ms.p50_ms / 1000:.0f} s"

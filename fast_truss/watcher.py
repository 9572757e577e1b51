"""One watcher for all visitors of a page: it wakes the model and describes its start."""

import asyncio
import time

from fast_truss import AsyncClient, Status
from fast_truss.errors import ClientError

PHASES = {"WAKING_UP": "Waking: getting a machine", "LOADING_MODEL": "Waking: loading the model"}
# How long a status is reused for other visitors.
FRESH_SECONDS = 10.0


class Watcher:
    """Polls Baseten once a second for any number of visitors, and never while nobody waits or looks."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._task: asyncio.Task[None] | None = None
        self._started = self._ended = float("-inf")
        self._status: Status | None = None
        self._error: str | None = None

    def start(self) -> None:
        """Wake the model and watch it, unless that is running or has just ended."""
        if not self.waiting and not (self.kind == "ready" and self._fresh):
            self._started, self._status, self._error = time.monotonic(), None, None
            self._task = asyncio.create_task(self._follow())

    async def look(self) -> None:
        """Refresh the status, unless it is recent. Does not wake the model."""
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
    def kind(self) -> str:
        """error, ready, waking or asleep."""
        if self._error:
            return "error"
        if self._status and self._status.ready:
            return "ready"
        return "waking" if self.waiting else "asleep"

    def words(self) -> str:
        """Return the error, or the phase with the seconds so far."""
        phase = PHASES.get(self._status.status if self._status else "", "Waking the model")
        waking = f"{phase} ({time.monotonic() - self._started:.0f} s)"
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
        except ClientError as error:
            self._error = str(error)
        finally:
            self._ended = time.monotonic()

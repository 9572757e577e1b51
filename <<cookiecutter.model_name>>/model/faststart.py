"""Plumbing that makes the cold start short, and tells where its time went. No model code."""

import contextlib
import gc
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from prometheus_client import Gauge

logger = logging.getLogger("uvicorn")

SENDFILE_BYTES = 2**30  # of one call; the kernel sends at most 2 GiB


class ColdStart:
    """The phases of one cold start, in seconds of wall time, in the order in which they ended."""

    def __init__(self) -> None:
        process_started = psutil.Process().create_time()
        self.phases: dict[str, float] = {"server_start": time.time() - process_started}
        self._gauge = Gauge("cold_start_phase_seconds", "Wall time of each phase of the cold start", ["phase"])

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.phases[name] = time.perf_counter() - started

    def rounded(self) -> dict[str, float]:
        return {name: round(seconds, 3) for name, seconds in self.phases.items()}

    def report(self) -> None:
        """Log one line of JSON and set the /metrics gauge, so production tells the same story."""
        logger.info(json.dumps({"event": "cold_start", "seconds": self.rounded()}))
        for name, seconds in self.phases.items():
            self._gauge.labels(phase=name).set(seconds)


def read_ahead(folder: Path) -> threading.Thread:
    """Bring the weights that are on disk into the page cache, while the imports run.

    Files that are not there yet are left out: a download fills the page cache by itself.
    """
    files = sorted(folder.rglob("*.safetensors"), key=lambda file: -file.stat().st_size)
    thread = threading.Thread(target=_read_all, args=(files,), daemon=True)
    thread.start()
    return thread


def _read_all(files: list[Path]) -> None:
    # To /dev/null the kernel sends pages without copying them, so the imports keep their core.
    with open(os.devnull, "wb", buffering=0) as nowhere:
        for file in files:
            with contextlib.suppress(OSError), file.open("rb", buffering=0) as stream:
                offset = 0
                while sent := os.sendfile(nowhere.fileno(), stream.fileno(), offset, SENDFILE_BYTES):
                    offset += sent


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Imports make many objects and no garbage. Collecting during them costs about 15%."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

"""Plumbing that makes the cold start short, and tells where its time went. No model code."""

import contextlib
import gc
import importlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

logger = logging.getLogger("uvicorn")

IMPORTED_FILES = Path(__file__).resolve().parent.parent / "imported_files.txt"
READERS = 8
SENDFILE_BYTES = 2**30  # of one call; the kernel sends at most 2 GiB


class ColdStart:
    """The phases of one cold start, in seconds of wall time, in the order in which they ended."""

    def __init__(self) -> None:
        from prometheus_client import Gauge

        self.phases: dict[str, float] = {"server_start": _process_age()}
        self._gauge = Gauge("cold_start_phase_seconds", "Wall time of each phase of the cold start", ["phase"])

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = time.perf_counter() - started

    @contextlib.contextmanager
    def reported(self) -> Iterator[Callable[[str], contextlib.AbstractContextManager]]:
        """Give phase(), and report at the end: also what led to a fault."""
        try:
            yield self.phase
        finally:
            self.report()

    def rounded(self) -> dict[str, float]:
        return {name: round(seconds, 3) for name, seconds in self.phases.items()}

    def report(self) -> None:
        """Log one line of JSON and set the /metrics gauge, so production tells the same story."""
        logger.info(json.dumps({"event": "cold_start", "seconds": self.rounded()}))
        for name, seconds in self.phases.items():
            self._gauge.labels(phase=name).set(seconds)


def _process_age() -> float:
    import psutil

    # Not from the clock of the day: psutil knows the time of the boot in whole seconds only.
    started = psutil.Process().create_time() - psutil.boot_time()
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) - started


def read_ahead(folder: Path) -> None:
    """Bring what the imports read, and then the weights in folder, into the page cache, while the imports run.

    Files that are not there yet are left out: a download fills the page cache by itself.
    """
    # A process of its own: threads in this one would wait for the interpreter's lock, which the imports hold.
    # -I -S: it needs no packages, and so it starts at once.
    command = [sys.executable, "-I", "-S", __file__, "read", str(folder)]
    threading.Thread(target=subprocess.run, args=(command,), daemon=True).start()


def read_all(folder: str | None = None) -> None:
    """Read what the imports read, and then what is in folder, and keep none of it."""
    imported = IMPORTED_FILES.read_text("utf-8").splitlines() if IMPORTED_FILES.is_file() else []
    cached = sorted(str(file) for file in Path(folder).rglob("*") if file.is_file()) if folder else []
    libraries = [file for file in imported if ".so" in file]
    small = [file for file in imported + cached if ".so" not in file and not file.endswith(".safetensors")]
    # First, and many at a time: behind the weights, each of these thousands of small reads would have to wait.
    with ThreadPoolExecutor(READERS + 1) as pool:
        list(pool.map(_read, [libraries, *(small[start::READERS] for start in range(READERS))]))
    _read(cached)


def _read(files: list[str]) -> None:
    # To /dev/null the kernel sends pages without copying them: that leaves the CPU to the imports.
    with open(os.devnull, "wb") as nowhere:
        for file in files:
            with contextlib.suppress(OSError), open(file, "rb", buffering=0) as stream:
                offset = 0
                while sent := os.sendfile(nowhere.fileno(), stream.fileno(), offset, SENDFILE_BYTES):
                    offset += sent


def record_imports(class_name: str) -> None:
    """Write down which files the imports read. A build command in config.yaml does it, in the image."""
    opened: dict[str, None] = {}  # in the order in which they are needed
    sys.addaudithook(lambda event, arguments: opened.setdefault(str(arguments[0])) if event == "open" else None)
    importlib.import_module("truss_server")
    getattr(importlib.import_module("diffusers"), class_name)
    files = dict.fromkeys(os.path.abspath(file) for file in [*_libraries(), *opened])
    # A size of 0: nothing to read, or a file of /proc, which ends with this process.
    IMPORTED_FILES.write_text(
        "\n".join(file for file in files if os.path.isfile(file) and os.path.getsize(file)), "utf-8"
    )


def _libraries() -> list[str]:
    """Return the mapped files of which so much was touched that one read of the whole is quicker."""
    import psutil

    maps = [each for each in psutil.Process().memory_maps() if Path(each.path).is_file()]
    return [each.path for each in maps if each.rss >= Path(each.path).stat().st_size / 10]


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Imports make many objects and no garbage. Collecting during them makes them 30% longer."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    {"read": read_all, "record": record_imports}[sys.argv[1]](*sys.argv[2:])

"""Plumbing that makes the cold start short, and tells where its time went. No model code."""

import contextlib
import gc
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from prometheus_client import Gauge

logger = logging.getLogger("uvicorn")

IMPORTED_FILES = Path(__file__).resolve().parent.parent / "imported_files.txt"
LIBRARY_BYTES = 2**29  # the libraries of CUDA are larger, and the imports read only a part of them
READERS = 8
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
    """Bring what the imports read, and then the weights in folder, into the page cache, while the imports run.

    Files that are not there yet are left out: a download fills the page cache by itself.
    """
    weights = sorted(folder.rglob("*.safetensors"), key=lambda file: -file.stat().st_size)
    imported = IMPORTED_FILES.read_text("utf-8").splitlines() if IMPORTED_FILES.is_file() else []
    thread = threading.Thread(target=_read_all, args=(imported, weights), daemon=True)
    thread.start()
    return thread


def _read_all(imported: list[str], weights: list[Path]) -> None:
    # First, and many at a time: behind the weights, each of these thousands of small reads would have to wait.
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(_ask_for, [imported[start::READERS] for start in range(READERS)]))
    # To /dev/null the kernel sends pages without copying them, so the imports keep their core.
    with open(os.devnull, "wb", buffering=0) as nowhere:
        for file in weights:
            with contextlib.suppress(OSError), file.open("rb", buffering=0) as stream:
                offset = 0
                while sent := os.sendfile(nowhere.fileno(), stream.fileno(), offset, SENDFILE_BYTES):
                    offset += sent


def _ask_for(files: list[str]) -> None:
    for file in files:
        with contextlib.suppress(OSError), open(file, "rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def record_imports(class_name: str) -> None:
    """Write down which files the imports of load() read. A build command in config.yaml does it, in the image."""
    import diffusers

    getattr(diffusers, class_name)
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    libraries = {file for file in mapped if Path(file).is_file() and Path(file).stat().st_size <= LIBRARY_BYTES}
    bytecode = {spec.cached for spec in specs if spec and spec.cached and Path(spec.cached).is_file()}
    IMPORTED_FILES.write_text("\n".join([*sorted(libraries), *sorted(bytecode)]), "utf-8")


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Imports make many objects and no garbage. Collecting during them costs about 15%."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    record_imports(sys.argv[1])

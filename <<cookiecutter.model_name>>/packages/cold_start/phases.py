"""Measures the phases of a cold start, and pauses the garbage collector during imports."""

import contextlib
import gc
import json
import logging
import time
from collections.abc import Iterator

logger = logging.getLogger("uvicorn")


class ColdStart:
    """The phases of a cold start in seconds of wall time, in the order in which they ended."""

    def __init__(self) -> None:
        from prometheus_client import Gauge

        self.phases: dict[str, float] = {"server_start": _process_age()}
        self._waits_for_answer = True
        self._gauge = Gauge("cold_start_phase_seconds", "Wall time of each phase of the cold start", ["phase"])

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = time.perf_counter() - started

    def first_answer(self, seconds: float) -> dict[str, float] | None:
        """Return all phases including the first answer's seconds, or None for every later answer."""
        # Clear the flag first: with a higher predict_concurrency another answer may come in between.
        first, self._waits_for_answer = self._waits_for_answer, False
        if not first:
            return None
        self.phases["first_image"] = seconds
        self.report()
        return self._rounded()

    def report(self) -> None:
        """Log one line of JSON and set the /metrics gauge."""
        logger.info(json.dumps({"event": "cold_start", "seconds": self._rounded()}))
        for name, seconds in self.phases.items():
            self._gauge.labels(phase=name).set(seconds)

    def _rounded(self) -> dict[str, float]:
        return {name: round(seconds, 3) for name, seconds in self.phases.items()}


def _process_age() -> float:
    import psutil

    # Not from the wall clock: psutil has the boot time only in whole seconds.
    started = psutil.Process().create_time() - psutil.boot_time()
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) - started


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause collection: imports create many objects but no garbage, and collecting makes them 30% longer."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

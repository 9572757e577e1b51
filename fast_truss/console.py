"""What the commands write for people. Progress goes to stderr, answers to stdout."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from fast_truss.api import Client, is_ready
from fast_truss.events import Event
from fast_truss.rules import Status, Wait


@functools.cache
def console() -> Any:
    """Return the rich console of stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def tell_pause(wait: Wait) -> None:
    """Say why the client waits, and how long."""
    console().print(f"{wait.reason} Trying again in {wait.seconds:.0f} s.", markup=False)


def show_progress(
    client: Client, timeout: float, started: float, until: Callable[[Status], bool] = is_ready
) -> list[tuple[float, Status]]:
    """Show each status and the seconds since started, until one is as asked. Returns both."""
    seen = []
    with console().status("asking"):
        for status in client.watch(timeout, until):
            seconds = time.monotonic() - started
            console().print(f"{seconds:7.1f} s  {status.status}, {replicas(status.replicas)}")
            seen.append((seconds, status))
    return seen


def show_steps(events: Iterator[Event], images: int) -> dict[str, Any]:
    """Show a bar while images are made. Returns the answer."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    data: dict[str, Any] = {}
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task("generating: a cold start may come first", total=None)
        for event in events:
            data = event.data
            if event.kind == "queued":
                bar.update(task, description="queued")
            elif event.kind == "step":
                image, step, count = data["image"], data["step"], data["of"]
                which = f"image {image} of {images}, " if images > 1 else ""
                done = (image - 1) * count + step
                bar.update(task, description=f"{which}step {step} of {count}", total=images * count, completed=done)
    return data


def replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def show_phases(answer: dict[str, Any]) -> None:
    """Show the server's phases of a cold start, in seconds. Only the first answer of a replica holds them."""
    phases = (answer.get("timings") or {}).get("cold_start")
    if not phases:
        return
    from rich.table import Table

    table = Table("cold start", "seconds")
    for name, seconds in phases.items():
        table.add_row(name, f"{seconds:.2f}")
    console().print(table)

"""Terminal output of the commands. Progress goes to stderr, answers to stdout."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from fast_truss import Client, Event, Status
from fast_truss.errors import printable


@functools.cache
def console() -> Any:
    """Return the rich console of stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def tell_pause(wait: Any) -> None:
    """Print why the client waits, and how long."""
    console().print(f"{wait.reason} Trying again in {wait.seconds:.0f} s.", markup=False)


def print_table(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # untrusted text: no markup
    Console(highlight=False).print(table)


def show_progress(
    client: Client, timeout: float, started: float, until: Callable[[Status], bool] = lambda status: status.ready
) -> list[tuple[float, Status]]:
    """Print each new status and the seconds since started, until `until` is true. Returns both."""
    seen = []
    with console().status("checking the status"):
        for status in client.watch(timeout, until):
            seconds = time.monotonic() - started
            console().print(f"{seconds:7.1f} s  {status.status}, {replicas(status.replicas)}", markup=False)
            seen.append((seconds, status))
    return seen


def show_steps(events: Iterator[Event], images: int) -> dict[str, Any]:
    """Show a progress bar while images are generated. Returns the answer."""
    from rich.progress import Progress

    answer: dict[str, Any] = {}
    with Progress(console=console(), transient=True) as bar:
        task = bar.add_task("waiting for the model, possibly through a cold start", total=None)
        for event in events:
            answer = event.data
            if event.kind == "step":
                image, step, count = answer["image"], answer["step"], answer["of"]
                shown = f"image {image} of {images}, step {step} of {count}"
                done = (image - 1) * count + step
                bar.update(task, description=shown, total=images * count, completed=done)
    return answer


def replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"

"""A chart of a cold start up to the first image: the platform's phases, with the server's phases inside."""

import dataclasses
from pathlib import Path
from typing import Any

from fast_truss import InvalidInput, Status
from fast_truss.errors import printable
from fast_truss.options import check_file

COLORS = {"platform": "#3b82f6", "server": "#f59e0b", "image": "#16a34a"}


@dataclasses.dataclass(frozen=True)
class Bar:
    """start: seconds since the cold start began. seconds: its length. level: a key of COLORS."""

    name: str
    start: float
    seconds: float
    level: str


def recorded(attempt: Any, began: float) -> list[Bar]:
    """Return the bars of the SDK's StartupAttempt. began: seconds since the epoch. Raises UnexpectedAnswer."""
    delay, bars = max(0.0, attempt.started_at_epoch_millis / 1000 - began), []
    for phase in attempt.phase_summary:
        length = attempt.duration_ms - phase.offset_ms if phase.duration_ms is None else phase.duration_ms
        bars.append(Bar(phase.phase, delay + phase.offset_ms / 1000, length / 1000, "platform"))
    return bars


def bars_of(
    record: list[Bar], seen: list[tuple[float, Status]], ready: float, image: float, server: dict[str, float]
) -> list[Bar]:
    """Return the bars from top to bottom.

    record: the platform's bars, or empty. seen: when each status was first seen, in order. server: the server's phases
    from its first answer.
    """
    bars = list(record)
    if not record:
        spans = zip(seen, [start for start, _ in seen[1:]] + [ready], strict=True)
        bars = [Bar(now.status, start, end - start, "platform") for (start, now), end in spans if not now.ready]
    inside = {name: seconds for name, seconds in server.items() if name != "first_image"}
    # The server's phases begin with its process. Without a record, assume that they end when the model is ready.
    start = bars[-1].start if record else max(0.0, ready - sum(inside.values()))
    for name, seconds in inside.items():
        bars.append(Bar(name, start, seconds, "server"))
        start += seconds
    return [*bars, Bar("first image", ready, image - ready, "image")]


def show(bars: list[Bar], console: Any = None) -> None:
    """Draw the bars on a rich console. Default: stdout."""
    from rich.bar import Bar as Drawn
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid("", "", "", padding=(0, 1), expand=True)
    total = max(bar.start + bar.seconds for bar in bars)
    for bar in bars:
        drawn = Drawn(total, bar.start, bar.start + bar.seconds, color=COLORS[bar.level])
        table.add_row(Text(printable(bar.name)), f"{bar.seconds:.2f} s", drawn)
    (console or Console(highlight=False)).print(table)


def check(file: Path) -> None:
    """Raise InvalidInput, before measuring, if save() could not write file."""
    check_file("--png", file, (".png",))
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise InvalidInput('--png needs matplotlib: pip install "fast-truss[plots]".') from None


def save(bars: list[Bar], title: str, file: Path) -> None:
    """Save the bars as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.32 * len(bars)), dpi=120, layout="constrained")
    axes, rows = figure.add_subplot(), range(len(bars))
    axes.set(title=title, xlabel="seconds", axisbelow=True)
    axes.grid(axis="x", alpha=0.3)
    starts, seconds = [bar.start for bar in bars], [bar.seconds for bar in bars]
    drawn = axes.barh(rows, seconds, left=starts, color=[COLORS[bar.level] for bar in bars])
    axes.bar_label(drawn, fmt="%.2f", padding=4)
    axes.set_yticks(rows, [bar.name for bar in bars])
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    figure.savefig(file)

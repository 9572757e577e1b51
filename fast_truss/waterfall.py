"""A chart of a cold start, up to the first image: the platform's phases, and the server's inside."""

import dataclasses
from pathlib import Path
from typing import Any

from fast_truss import charts

# Colors of the bars by level: the platform, the server inside it, and the first image.
COLORS = {"platform": "#3b82f6", "server": "#f59e0b", "image": "#16a34a"}
WORDS = {
    "SCHEDULING": "acquire a machine",
    "IMAGE_PULL": "pull the image",
    "WEIGHT_DOWNLOAD": "download the weights",
    "CONTAINER_CREATE": "create the container",
    "CONTAINER_START": "start the container",
    "READINESS": "until it is ready",
}


@dataclasses.dataclass(frozen=True)
class Bar:
    """start, seconds: since the beginning. level: a key of COLORS."""

    name: str
    start: float
    seconds: float
    level: str

    @property
    def label(self) -> str:
        if self.level == "server":
            return f"  {self.name}"
        return f"{self.name}: {WORDS[self.name]}" if self.name in WORDS else self.name


@dataclasses.dataclass(frozen=True)
class ColdStart:
    """What was measured, in seconds since the wake, or since the replica before it was ended.

    attempt: the SDK's StartupAttempt, or None. seen: when each status was first seen, in order. server: the server's
    own phases, as its first answer tells them.
    """

    began: float  # seconds since the epoch
    seen: list[tuple[float, str]]
    ready: float
    image: float
    server: dict[str, float]
    attempt: Any = None

    def bars(self) -> list[Bar]:
        """Return the bars from top to bottom."""
        bars = self._recorded() if self.attempt else self._watched()
        server = {name: seconds for name, seconds in self.server.items() if name != "first_image"}
        start = bars[-1].start if bars else 0.0
        if not self.attempt:  # the server's first phase begins with its process, which is not recorded: it ends ready
            start = max(start, self.ready - sum(server.values()))
        for name, seconds in server.items():
            bars.append(Bar(name, start, seconds, "server"))
            start += seconds
        return [*bars, Bar("first image", self.ready, self.image - self.ready, "image")]

    def missing(self) -> list[str]:
        """Return a sentence for each thing that was not told."""
        found = []
        if not self.attempt:
            sentence = "the platform's phases are what the status showed, once a second."
            found.append(f"Baseten has no record of this startup (a beta): {sentence}")
        if not self.server:
            found.append("The server's own phases are missing: another request got the first answer of the replica.")
        return found

    def _recorded(self) -> list[Bar]:
        began = max(0.0, self.attempt.started_at_epoch_millis / 1000 - self.began)
        bars = []
        for phase in self.attempt.phase_summary:
            rest = self.attempt.duration_ms - phase.offset_ms
            seconds = (rest if phase.duration_ms is None else phase.duration_ms) / 1000
            bars.append(Bar(phase.phase, began + phase.offset_ms / 1000, seconds, "platform"))
        return bars

    def _watched(self) -> list[Bar]:
        ends = [start for start, _ in self.seen[1:]] + [self.ready]
        bars = [Bar(name, start, end - start, "platform") for (start, name), end in zip(self.seen, ends, strict=True)]
        return [bar for bar in bars if bar.name != "ACTIVE"]


def show(bars: list[Bar], console: Any = None) -> None:
    """Draw the bars into a rich console, stdout if None."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "left"):
        table.add_column(no_wrap=True, justify=justify)
    total = max((bar.start + bar.seconds for bar in bars), default=0.0) or 1.0
    width = max(20, console.width - max(len(bar.label) for bar in bars) - 14)
    for bar in bars:
        left = min(int(width * bar.start / total), width - 1)
        length = min(max(1, round(width * bar.seconds / total)), width - left)
        drawn = Text(" " * left + "█" * length, style=COLORS[bar.level])
        table.add_row(bar.label, f"{bar.seconds:.2f} s", drawn)
    console.print(table)


def save(bars: list[Bar], title: str, file: Path) -> None:
    """Draw the bars into a PNG."""
    chart = charts.figure(11, 1.2 + 0.32 * len(bars))
    axes, rows = chart.subplots(), range(len(bars))
    starts, seconds = [bar.start for bar in bars], [bar.seconds for bar in bars]
    drawn = axes.barh(rows, seconds, left=starts, color=[COLORS[bar.level] for bar in bars])
    axes.bar_label(drawn, [f"{each:.2f}" for each in seconds], padding=4, color=charts.GREY)
    axes.set_yticks(rows, [bar.label for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    charts.style(axes, title, "seconds")
    chart.savefig(file)

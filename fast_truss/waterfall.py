"""One picture of a cold start, from the wake to the first image: the platform's phases, and the server's inside."""

import dataclasses
from pathlib import Path
from typing import Any

from fast_truss.errors import InvalidInput

# Colours of the bars by level: the platform, the server inside it, and the first image.
COLOURS = {"platform": (59, 130, 246), "server": (245, 158, 11), "image": (22, 163, 74)}
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
    """start, seconds: since the wake. level: a key of COLOURS."""

    name: str
    start: float
    seconds: float
    level: str


@dataclasses.dataclass(frozen=True)
class ColdStart:
    """What was measured, in seconds since the wake.

    attempt: the SDK's StartupAttempt, or None. seen: when each status was first seen, in order. server: the server's
    own phases, as its first answer tells them.
    """

    woken_at: float  # seconds since the epoch
    seen: list[tuple[float, str]]
    ready: float
    image: float
    server: dict[str, float]
    attempt: Any = None

    def bars(self) -> list[Bar]:
        """Return the bars from top to bottom."""
        platform = self._recorded() if self.attempt else self._watched()
        server = {name: seconds for name, seconds in self.server.items() if name != "first_image"}
        inside = platform[-1] if platform else Bar("", 0.0, self.ready, "platform")
        # The server's first phase begins with its process. Where that is not recorded, it ends with readiness.
        start = inside.start if self.attempt else max(inside.start, self.ready - sum(server.values()))
        nested = []
        for name, seconds in server.items():
            nested.append(Bar(name, start, seconds, "server"))
            start += seconds
        return [*platform, *nested, Bar("first image", self.ready, self.image - self.ready, "image")]

    def missing(self) -> list[str]:
        """Return a sentence for each thing that was not told."""
        found = []
        if not self.attempt:
            found.append(
                "Baseten's record of startups (a beta) tells nothing of this one: the platform's phases are what the "
                "status showed, once a second."
            )
        if not self.server:
            found.append("The server's own phases are missing: another request got the first answer of the replica.")
        return found

    def _recorded(self) -> list[Bar]:
        began = max(0.0, self.attempt.started_at_epoch_millis / 1000 - self.woken_at)
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


def label(bar: Bar) -> str:
    if bar.level == "server":
        return f"  {bar.name}"
    return f"{bar.name}: {WORDS[bar.name]}" if bar.name in WORDS else bar.name


def show(bars: list[Bar], console: Any) -> None:
    """Draw the bars into a rich console."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    total = max((bar.start + bar.seconds for bar in bars), default=0.0) or 1.0
    width = max(20, console.width - max(len(label(bar)) for bar in bars) - 14)
    for bar in bars:
        left = int(width * bar.start / total)
        length = max(1, round(width * bar.seconds / total))
        colour = "#{:02x}{:02x}{:02x}".format(*COLOURS[bar.level])
        drawn = Text(" " * min(left, width - 1) + "█" * min(length, width - min(left, width - 1)), style=colour)
        table.add_row(label(bar), f"{bar.seconds:.2f} s", drawn)
    console.print(table)


def check_png(file: Path) -> None:
    """Raise InvalidInput, before anything is measured, if save() could not write file."""
    from fast_truss.generation import check_output

    if file.suffix.lower() != ".png":
        raise InvalidInput(f"--png is {str(file)!r}: use a name that ends in .png.")
    check_output(file)
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        raise InvalidInput("--png needs Pillow, which is not installed: pip install pillow.") from None


def save(bars: list[Bar], title: str, file: Path) -> None:
    """Draw the bars into a PNG."""
    from PIL import Image, ImageDraw, ImageFont

    row, left, right, top, chart = 34, 390, 90, 70, 820
    font, large = ImageFont.load_default(17), ImageFont.load_default(22)
    picture = Image.new("RGB", (left + chart + right, top + row * len(bars) + 50), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((20, 20), title, fill="black", font=large)
    total = max((bar.start + bar.seconds for bar in bars), default=0.0) or 1.0
    scale = chart / total
    bottom = top + row * len(bars)
    step = _step(total)
    for number in range(int(total / step) + 1):
        x = left + number * step * scale
        draw.line([(x, top - 6), (x, bottom)], fill=(225, 225, 228))
        draw.text((x, bottom + 8), f"{number * step:g} s", fill=(90, 90, 96), font=font, anchor="ma")
    for number, bar in enumerate(bars):
        y = top + number * row
        x = left + bar.start * scale
        end = max(x + 2, x + bar.seconds * scale)
        draw.rectangle([(x, y + 4), (end, y + row - 8)], fill=COLOURS[bar.level])
        shown = label(bar)
        indent = 44 if bar.level == "server" else 20
        draw.text((indent, y + row / 2 - 2), shown.strip(), fill=(40, 40, 46), font=font, anchor="lm")
        draw.text((end + 6, y + row / 2 - 2), f"{bar.seconds:.2f}", fill=(90, 90, 96), font=font, anchor="lm")
    picture.save(file)


def _step(total: float) -> float:
    for step in (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600):
        if total / step <= 10:
            return step
    return 1800

"""What all charts share. They are PNG files, drawn by matplotlib, which only `[plots]` brings."""

from pathlib import Path
from typing import Any

from fast_truss import InvalidInput
from fast_truss.options import check_file


def check(file: Path) -> None:
    """Raise InvalidInput, before anything is measured, if no chart can be drawn into file."""
    check_file("--png", file, (".png",))
    figure(1, 1)


def figure(width: float, height: float) -> Any:
    """Return a matplotlib Figure of so many inches."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise InvalidInput('--png needs matplotlib: pip install "fast-truss[plots]".') from None
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def style(axes: Any, title: str, x: str) -> None:
    """Give axes a title, a label, and a grid behind what is drawn."""
    axes.set(title=title, xlabel=x, axisbelow=True)
    axes.grid(axis="x", alpha=0.3)

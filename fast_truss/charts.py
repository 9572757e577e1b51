"""Charts as PNG files, by matplotlib, which only `[plots]` brings."""

from pathlib import Path
from typing import Any

from fast_truss import InvalidInput
from fast_truss.options import check_file

GREY = "#5a5a60"


def check(file: Path) -> None:
    """Raise InvalidInput, before anything is measured, if save() could not write file."""
    check_file("--png", file, (".png",))
    figure(1, 1)


def figure(width: float, height: float) -> Any:
    """Return a matplotlib Figure of so many inches, and no more than one: nothing is kept between two charts."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise InvalidInput('--png needs matplotlib: pip install "fast-truss[plots]".') from None
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def style(axes: Any, title: str, x: str, y: str = "") -> None:
    """Give axes a title, labels, and a grid behind what is drawn."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x, color=GREY)
    axes.set_ylabel(y, color=GREY)
    axes.grid(color="#e1e1e4", axis="both" if y else "x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)

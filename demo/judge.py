"""Recognize what an image of the demo shows from its pixels. Shares no drawing code with the training."""

import dataclasses
from collections.abc import Mapping

import numpy

# The part of shape and outline together that they must have in common.
LEAST_OVERLAP = 0.75
# An image has a shape if something differs so much from its edge, in levels of 0 to 255.
LEAST_CONTRAST = 60
# Whether the points (u, v), right and down from the middle of the shape's box, -1 to 1, belong to it.
OUTLINES = {
    "circle": lambda u, v: u**2 + v**2 <= 1,
    "square": lambda u, v: (abs(u) <= 1) & (abs(v) <= 1),
    "triangle": lambda u, v: (abs(u) <= (v + 1) / 2) & (v <= 1),
    "cross": lambda u, v: ((abs(u) <= 1 / 3) & (abs(v) <= 1)) | ((abs(v) <= 1 / 3) & (abs(u) <= 1)),
}


@dataclasses.dataclass(frozen=True)
class Seen:
    """What an image shows. "none": nothing recognized."""

    shape: str
    color: str
    background: str


def look(image: numpy.ndarray, palette: Mapping[str, tuple[int, int, int]]) -> Seen:
    """Return what the image (uint8, [height, width, 3]) shows, in the words of the palette."""
    pixels = image.astype(float)
    edge = numpy.ones(pixels.shape[:2], bool)
    edge[3:-3, 3:-3] = False
    ground = numpy.median(pixels[edge], axis=0)
    background = nearest(ground, palette)
    contrast = numpy.linalg.norm(pixels - ground, axis=-1)
    # A shape fills 10 to 40% of the image, and none of its edge.
    most = numpy.percentile(contrast, 95)
    if most < LEAST_CONTRAST:
        return Seen("none", "none", background)
    mask = contrast > most / 2
    if mask[edge].mean() > 0.1:
        return Seen("none", "none", background)
    return Seen(outline(mask), nearest(numpy.median(pixels[mask], axis=0), palette), background)


def nearest(color: numpy.ndarray, palette: Mapping[str, tuple[int, int, int]]) -> str:
    """Return the word for the color (3 levels)."""
    return min(palette, key=lambda word: float(numpy.linalg.norm(color - palette[word])))


def outline(mask: numpy.ndarray) -> str:
    """Return the shape that covers best what is True."""
    # A few stray pixels do not stretch the box.
    rows, columns = (numpy.flatnonzero(mask.sum(axis) >= 3) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return "none"
    v, u = (
        (numpy.arange(size) - (found[0] + found[-1]) / 2) / ((found[-1] - found[0] + 1) / 2)
        for size, found in zip(mask.shape, (rows, columns), strict=True)
    )
    overlaps = {}
    for shape, inside in OUTLINES.items():
        filled = inside(u[None, :], v[:, None])
        overlaps[shape] = (filled & mask).sum() / (filled | mask).sum()
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= LEAST_OVERLAP else "none"

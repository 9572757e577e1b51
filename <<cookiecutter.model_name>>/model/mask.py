"""Masks: which part of the image is painted, and how the result is blended into the rest."""

import math
from collections.abc import Callable
from typing import Any

from model import images

Box = tuple[int, int, int, int]


def decode(text: str, start: Any, blur: int) -> Any:
    """Return the mask in text, scaled and cropped like start: 0 is kept, 255 painted over. What is clear is kept.

    blur: the edges fade outwards, half at so many pixels, all at twice. White stays 255, however thin. Raises
    ValueError as images.read() does, if its shape differs from that of start, and if it paints nothing.
    """
    from PIL import Image, ImageFilter, ImageOps

    white: list[Any] = []

    def fit(whole: Any) -> Any:
        # A brush or a JPEG makes black and white only nearly so.
        gray = whole.convert("L").point(lambda level: 0 if level < 16 else 255 if level > 239 else level)
        # As it weighs by opacity, scaling down makes nothing paler.
        gray.putalpha(gray.point(lambda level: 255 if level else 0))
        white.append(gray.getbbox())
        return ImageOps.fit(gray, start.size, Image.Resampling.BOX).getchannel("L")

    mask = images.read(text, max(start.size), "black", fit)
    if not math.isclose(mask.info["shape"], start.info["shape"], rel_tol=0.02):
        raise ValueError("its aspect ratio differs from that of image: make it as wide and high")
    if white == [None]:
        raise ValueError("it is all black, so nothing would change: paint white what should change")
    if mask.getbbox() is None:
        raise ValueError(
            "what is white in it was cropped away, or is less than a pixel: give width and height the shape of image"
        )
    mask = Image.fromarray(_widened(mask, blur))
    for radius in (blur // 3, (blur + 1) // 3, (blur + 2) // 3):  # three boxes are nearly a bell
        mask = mask.filter(ImageFilter.BoxBlur(radius))
    return mask


def _widened(mask: Any, pixels: int) -> Any:
    """Grow what is white by this many pixels: an array. A maximum filter, in steps that double."""
    import numpy

    gray = numpy.asarray(mask)
    for _ in range(2):
        gray, span = numpy.pad(gray.T, ((pixels, pixels), (0, 0))), 1
        while span <= 2 * pixels:
            step = min(span, 2 * pixels + 1 - span)
            gray, span = numpy.maximum(gray[:-step], gray[step:]), span + step
    return gray


def cut_out(start: Any, mask: Any, padding: int | None, cell: int) -> tuple[Any, Any, Callable[[Any], Any]]:
    """Return image and mask for the pipeline, both of start's size, and a function that blends its result into start.

    padding: paint only the mask and this many pixels around it, scaled up to the full size. None: the whole image.
    cell: side in pixels of one latent cell; the pipeline samples one mask pixel per cell.
    """
    import numpy
    from PIL import Image

    box: Box = (0, 0, start.width, start.height) if padding is None else _around(mask.getbbox(), start.size, padding)
    width, height = box[2] - box[0], box[3] - box[1]
    gray = numpy.asarray(mask.resize(start.size, Image.Resampling.NEAREST, box))
    # Paint every cell that the mask touches, however thin or pale.
    cells = gray.reshape(start.height // cell, cell, start.width // cell, cell).any(axis=(1, 3))
    painted = Image.fromarray(cells.astype("uint8") * 255).resize(start.size, Image.Resampling.NEAREST)

    def lay_over(made: Any) -> Any:
        whole = start.copy()
        whole.paste(made.resize((width, height)), box, mask.crop(box))
        return whole

    return start.resize(start.size, box=box), painted, lay_over


def _around(part: Box, size: tuple[int, int], padding: int) -> Box:
    """Return the smallest box with size's aspect ratio, within size, that contains part plus padding."""
    left, top, right, bottom = part
    width, height = size
    scale = min(1.0, max((right - left + 2 * padding) / width, (bottom - top + 2 * padding) / height))
    wide, high = math.ceil(width * scale), math.ceil(height * scale)
    x = min(max((left + right - wide) // 2, 0), width - wide)
    y = min(max((top + bottom - high) // 2, 0), height - high)
    return x, y, x + wide, y + high

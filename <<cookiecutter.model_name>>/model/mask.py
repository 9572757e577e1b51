"""What a mask does: which part of the image is painted, and how that is laid over the rest."""

import math
from collections.abc import Callable
from typing import Any

from model import images

Box = tuple[int, int, int, int]


def decode(text: str, width: int, height: int, blur: int) -> Any:
    """Return the mask in text, fitted as images.decode() fits: 0 is kept, 255 painted over. What is clear is kept.

    blur: of its edges, the deviation in pixels. Raises ValueError as images.decode() does, and if all of it is black.
    """
    from PIL import ImageFilter

    mask = images.decode(text, width, height, background="black").convert("L").filter(ImageFilter.GaussianBlur(blur))
    if mask.getbbox() is None:
        raise ValueError("it is all black, so nothing would change: paint white what should change")
    return mask


def cut_out(start: Any, mask: Any, padding: int | None, cell: int) -> tuple[Any, Any, Callable[[Any], Any]]:
    """Return the image and the mask for the pipeline, both as large as start, and what lays its work over start.

    padding: pixels around what is painted. This part alone is then painted, scaled up to the whole size. None: all.
    cell: the side, in pixels, of what the pipeline keeps or paints as one. Of it, it looks at one pixel.
    """
    import numpy
    from PIL import Image

    box: Box = (0, 0, start.width, start.height) if padding is None else _around(mask.getbbox(), start.size, padding)
    width, height = box[2] - box[0], box[3] - box[1]
    gray = numpy.asarray(mask.resize(start.size, Image.Resampling.NEAREST, box))
    # So that all that will show is painted, however thin or pale.
    cells = gray.reshape(start.height // cell, cell, start.width // cell, cell).any(axis=(1, 3))
    painted = Image.fromarray(cells.astype("uint8") * 255).resize(start.size, Image.Resampling.NEAREST)

    def lay_over(made: Any) -> Any:
        whole = start.copy()
        whole.paste(made.resize((width, height)), box, mask.crop(box))
        return whole

    return start.resize(start.size, box=box), painted, lay_over


def _around(part: Box, size: tuple[int, int], padding: int) -> Box:
    """Return the smallest box of the shape of size, and within it, that holds the part and padding around it."""
    left, top, right, bottom = part
    width, height = size
    scale = min(1.0, max((right - left + 2 * padding) / width, (bottom - top + 2 * padding) / height))
    wide, high = math.ceil(width * scale), math.ceil(height * scale)
    x = min(max((left + right - wide) // 2, 0), width - wide)
    y = min(max((top + bottom - high) // 2, 0), height - high)
    return x, y, x + wide, y + high

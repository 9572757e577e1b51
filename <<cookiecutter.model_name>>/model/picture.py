"""Pictures as base64 text: what a request may bring, and what an answer holds."""

import base64
import binascii
import io
from typing import Any

FORMATS = ("PNG", "JPEG", "WEBP")


def decode(text: str, max_bytes: int, max_pixels: int) -> Any:
    """Return the RGB picture that text holds, upright. Raises ValueError with a sentence if it cannot be used.

    max_bytes: of the file. max_pixels: checked before a pixel is decoded, so a decompression bomb stays folded.
    """
    from PIL import Image, ImageOps

    if len(text) > (max_bytes + 2) // 3 * 4:
        raise ValueError(f"it is larger than {max_bytes} bytes: send a smaller file")
    try:
        file = base64.b64decode(text.encode("ascii", "replace"), validate=True)
    except binascii.Error as error:
        raise ValueError("it is not base64: send the bytes of the file in base64, without a data: prefix") from error
    try:
        picture = Image.open(io.BytesIO(file), formats=FORMATS)
        if picture.width * picture.height <= max_pixels:
            return ImageOps.exif_transpose(picture).convert("RGB")
    # For a damaged file Pillow raises whatever its parsers run into, AttributeError and struct.error among them.
    except Exception as error:
        raise ValueError("it cannot be read: send a whole PNG, JPEG or WebP file") from error
    raise ValueError(f"it has {picture.width} x {picture.height} pixels, more than {max_pixels}: send a smaller one")


def fit(picture: Any, width: int, height: int) -> Any:
    """Return picture scaled and cropped around its middle to width x height pixels."""
    from PIL import ImageOps

    return ImageOps.fit(picture, (width, height))


def encode(picture: Any, output_format: str, quality: int) -> str:
    """Return the file as base64. quality: 1 to 100, of jpeg and webp only."""
    buffer = io.BytesIO()
    options = {} if output_format == "png" else {"quality": quality}
    picture.save(buffer, format=output_format, **options)
    return base64.b64encode(buffer.getvalue()).decode()

"""Pictures as base64 text: what a request may bring, and what an answer holds."""

import base64
import io
import re
from typing import Any

FORMATS = ("PNG", "JPEG", "WEBP")
DATA_URL = re.compile(r"data:[^,]{,100};base64,", re.IGNORECASE)  # of any type: the file says what it is
# Of the text: what holds the size of most pictures. A multiple of four, as base64 comes in fours.
HEADER_CHARACTERS = 2**21
# A JPEG is scaled down while it is decoded, so it may be larger. Phones make 50 megapixels.
JPEG_PIXELS = 4
# Each scan of a progressive JPEG is a pass over the whole picture. Cameras and editors write about 10. The marker and
# what follows it, as a video behind the picture holds the marker alone by chance.
JPEG_SCANS, SCAN = 100, re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e][\x01-\x04]")


def check(text: str, max_bytes: int, max_pixels: int) -> None:
    """Raise ValueError with a sentence if the picture cannot be used. Looks at its length and its header only.

    max_bytes: of the file. max_pixels: before a pixel is decoded, so a decompression bomb stays folded.
    """
    encoded = text[_start(text) :]
    if len(encoded) > (max_bytes + 2) // 3 * 4:
        raise ValueError(f"it is larger than {max_bytes} bytes: send a smaller file")
    head = _bytes(encoded[:HEADER_CHARACTERS])
    # Pillow opens a WebP only when it is whole, and a JPEG may have more metadata than that.
    picture = _open(_bytes(encoded) if head.startswith((b"RIFF", b"\xff\xd8")) else head)
    most = max_pixels * JPEG_PIXELS if picture.format == "JPEG" else max_pixels
    if picture.width * picture.height > most:
        raise ValueError(f"it has {picture.width} x {picture.height} pixels, more than {most}: send a smaller one")


def decode(text: str, width: int, height: int) -> Any:
    """Return the RGB picture in text: upright, laid on white, scaled and cropped to width x height.

    Its info["cropped"] is the share that was cut off. Raises ValueError with a sentence if it is damaged. It decodes
    whatever it is given: call check() first.
    """
    from PIL import Image, ImageOps

    file = _bytes(text[_start(text) :])
    picture = _open(file)
    size = picture.size
    if picture.format == "JPEG" and len(SCAN.findall(file)) > JPEG_SCANS:
        raise ValueError(f"it has more than {JPEG_SCANS} scans: save it as an ordinary JPEG")
    try:
        # A JPEG then comes at the least of 1/8, 1/4, 1/2 and 1 that is no smaller than asked, however it is turned.
        picture.draft("RGB", (max(width, height),) * 2)
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):
            picture = picture.convert("I").point(lambda grey: grey * (255 / 65535)).convert("L")
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        wide, high = sorted(size, reverse=picture.width > picture.height)
        shape = (wide * height) / (high * width)
        made = ImageOps.fit(picture.convert("RGB"), (width, height))
        made.info["cropped"] = 1 - min(shape, 1 / shape)
        return made
    # For a damaged file Pillow raises whatever its parsers run into, AttributeError and struct.error among them.
    except Exception as error:
        raise ValueError("it cannot be read: send a whole PNG, JPEG or WebP file") from error


def encode(picture: Any, output_format: str, quality: int, compress_level: int) -> str:
    """Return the file as base64. quality: 1 to 100, of jpeg and webp only. compress_level: 0 to 9, of png only."""
    buffer = io.BytesIO()
    picture.save(buffer, format=output_format, quality=quality, compress_level=compress_level)
    return base64.b64encode(buffer.getvalue()).decode()


def _start(text: str) -> int:
    url = DATA_URL.match(text)
    return url.end() if url else 0


def _bytes(encoded: str) -> bytes:
    try:
        # Line breaks, as `base64 FILE` writes them, are no harm.
        return base64.b64decode(encoded.encode("ascii").translate(None, b"\r\n"), validate=True)
    except ValueError as error:
        raise ValueError("it is not base64: send the bytes of the file in base64, or a data: URL of them") from error


def _open(file: bytes) -> Any:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(file), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError("it has far too many pixels: send a smaller one") from None
    except Exception as error:
        raise ValueError("it cannot be read: send a whole PNG, JPEG or WebP file") from error

"""Images as base64: decoding those of requests, encoding those of answers."""

import base64
import contextlib
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from pipeline_settings import ReferenceImages

FORMATS = ("PNG", "JPEG", "WEBP")
DATA_URL = re.compile(r"data:[^,]{,100};base64,", re.IGNORECASE)  # any MIME type: the file's header decides
# Enough text to hold the header of most images. A multiple of four, as in base64.
HEADER_CHARACTERS = 2**21
# How a JPEG begins. Pillow's format is MPO if a second image follows, as in photos of phones.
JPEG = b"\xff\xd8"
# A JPEG may be larger, as it is scaled down while decoding. Phones take photos of 50 megapixels.
JPEG_PIXELS = 4
# Each scan of a progressive JPEG is a pass over the whole image. Cameras and editors write about 10. Match SOS plus its
# fields: a trailing video can contain the bare marker by chance.
JPEG_SCANS, SCAN = 100, re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e][\x01-\x04]")

# IPTC's mark of what a model made: https://iptc.org/std/photometadata/specification/, Digital Source Type.
XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:\
DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta>"""


def prepare() -> None:
    """Import what Pillow needs for FORMATS, which the first request would wait for."""
    from PIL import Image, ImageOps, WebPImagePlugin  # noqa: F401

    Image.preinit()


def plain(color: str) -> str:
    """Return a small image of one color, as requests bring it."""
    from PIL import Image

    return encode(Image.new("RGB", (64, 64), color), "png", 90, 1)


def check(texts: Sequence[str], max_bytes: int, max_pixels: int) -> None:
    """Raise ValueError if the images cannot be used. Reads only lengths and headers.

    max_bytes, max_pixels: totals. Checked before decoding, so a decompression bomb is never decoded.
    """
    encoded = [_encoded(text) for text in texts]
    if sum(map(len, encoded)) > (max_bytes + 2) // 3 * 4:
        they, smaller = ("the images together are", "smaller files") if len(texts) > 1 else ("it is", "a smaller file")
        raise ValueError(f"{they} larger than {max_bytes} bytes: send {smaller}")
    pixels = 0.0
    for whole in encoded:
        head = _bytes(whole[:HEADER_CHARACTERS])
        # Pillow opens a WebP only if it is complete, and a JPEG may have more metadata than that.
        image = _open(_bytes(whole) if head.startswith((b"RIFF", JPEG)) else head)
        counts = 1 / JPEG_PIXELS if head.startswith(JPEG) else 1
        if image.width * image.height * counts > max_pixels:
            most = int(max_pixels / counts)
            raise ValueError(f"it has {image.width} x {image.height} pixels, more than {most}: send a smaller one")
        pixels += image.width * image.height * counts
    if pixels > max_pixels:
        raise ValueError(f"the images together have more than {max_pixels} pixels: send smaller ones")


def decode(text: str, width: int, height: int) -> Any:
    """Return the RGB image in text: upright, laid on white, scaled and cropped to width x height: see read()."""
    from PIL import ImageOps

    return read(text, max(width, height), "white", lambda image: ImageOps.fit(image, (width, height)))


def decode_reference(text: str, bounds: ReferenceImages, multiple: int) -> Any:
    """Return the RGB image in text: upright, on white, uncropped, scaled to bounds and to multiples.

    Raises ValueError if it is damaged or too long. Call check() first, as for decode().
    """
    image = read(text, math.isqrt(bounds.max_pixels), "white", lambda image: image)
    if max(image.size) > bounds.max_ratio * min(image.size):
        raise ValueError(f"it is more than {bounds.max_ratio:g} times as long as wide: crop it")
    scale = min(1, math.sqrt(bounds.max_pixels / (image.width * image.height)))
    scale = max(scale, bounds.min_side / min(image.size))
    # Round down to multiples, or the pipeline would crop the rest.
    sides = [max(int(side * scale) // multiple * multiple, bounds.min_side) for side in image.size]
    return image.resize(sides)


def read(text: str, side: int, background: str, fit: Callable[[Any], Any]) -> Any:
    """Return fit(image): of the RGB image in text, upright, in sRGB and laid on the background.

    side: a JPEG may be scaled down to this while it is decoded, not further. The info tells the share that fit cut off
    (cropped), how many times as wide as high it was (shape), and nothing of what the file says beside its pixels.
    Raises ValueError with a sentence if it is damaged. It decodes whatever it is given: call check() first.
    """
    from PIL import Image, ImageChops, ImageOps

    file = _bytes(_encoded(text))
    image = _open(file)
    size = image.size
    if file.startswith(JPEG) and len(SCAN.findall(file)) > JPEG_SCANS:
        raise ValueError(f"it has more than {JPEG_SCANS} scans: save it as an ordinary JPEG")
    try:
        # Decodes a JPEG at the smallest of 1/8, 1/4, 1/2 and 1 that is large enough in either orientation.
        image.draft("RGB", (side, side))
        image.load()
        with contextlib.suppress(Exception):  # ignore a damaged EXIF orientation
            image = ImageOps.exif_transpose(image)
        profile = image.info.get("icc_profile")
        if image.mode.startswith("I"):
            image = image.convert("I").point(lambda gray: gray * (255 / 65535)).convert("L")
        if image.has_transparency_data:
            image = image.convert("RGBA")
        seen = _in_srgb(image, profile) if profile else image.convert("RGB")
        if image.mode == "RGBA":
            seen.paste(Image.new("RGB", image.size, background), mask=ImageChops.invert(image.getchannel("A")))
        made = fit(seen)
        wide, high = sorted(size, reverse=image.width > image.height)
        fits = (wide * made.height) / (high * made.width)
        made.info = {"shape": wide / high, "cropped": 1 - min(fits, 1 / fits)}
        return made
    # Pillow's parsers raise many types for a damaged file, such as AttributeError and struct.error.
    except Exception as error:
        raise ValueError("it cannot be read: send a whole PNG, JPEG or WebP file") from error


def _in_srgb(image: Any, profile: bytes) -> Any:
    """Return the image, opaque, in RGB. As browsers do, it ignores a profile that is damaged or of other channels."""
    from PIL import ImageCms

    with contextlib.suppress(OSError, ImageCms.PyCMSError):
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"GRAY": "L", "CMYK": "CMYK"}.get(own.profile.xcolor_space.strip(), "RGB")
        if (mode == "CMYK") == (image.mode == "CMYK"):
            srgb = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image.convert(mode), own, srgb, outputMode="RGB")
    return image.convert("RGB")


def encode(image: Any, output_format: str, quality: int, compress_level: int, text: str | None = None) -> str:
    """Return the file as base64. quality: 1 to 100, of jpeg and webp only. compress_level: 0 to 9, of png only.

    text: what it says of how it was made, with the mark of what a model made. None: neither.
    """
    buffer = io.BytesIO()
    beside = {} if text is None else _beside(output_format, text)
    image.save(buffer, format=output_format, quality=quality, compress_level=compress_level, **beside)
    return base64.b64encode(buffer.getvalue()).decode()


def _beside(output_format: str, text: str) -> dict[str, Any]:
    from PIL import Image, PngImagePlugin

    if output_format == "png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("parameters", text)
        chunks.add_itxt("XML:com.adobe.xmp", XMP)
        return {"pnginfo": chunks}
    exif = Image.Exif()
    # UserComment. A JPEG has 64 kB for it.
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text[:16_000].encode("utf-16-be")
    return {"exif": exif, "xmp": XMP.encode()}


def _encoded(text: str) -> str:
    """Return the base64 in text, without the line breaks that `base64 FILE` writes."""
    url = DATA_URL.match(text)
    return text[url.end() if url else 0 :].replace("\n", "").replace("\r", "")


def _bytes(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
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

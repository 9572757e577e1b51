"""What people send as an image is taken as they see it, or refused before it costs anything."""

import base64
import io
import struct
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy
import pytest
from conftest import Make, Served, text_of
from model import images
from PIL import Image, PngImagePlugin

PIXELS = 4096 * 4096
BYTES = 10_000_000


def taken(text: str, width: int = 64, height: int = 64) -> numpy.ndarray:
    images.check([text], BYTES, PIXELS)
    found = images.decode(text, width, height)
    assert (found.mode, found.size) == ("RGB", (width, height))
    return numpy.asarray(found)


def hidden(mode: str) -> Image.Image:
    """A clear image whose hidden color is black, but for one solid red or gray pixel block."""
    rgba = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    rgba.paste((255, 0, 0, 255), (0, 0, 32, 64))
    if mode == "P":
        return rgba.convert("P", palette=Image.Palette.ADAPTIVE)
    return rgba.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_what_is_clear_is_white(mode: str, file_format: str) -> None:
    if mode == "P" and file_format == "WEBP":
        return
    pixels = taken(text_of(hidden(mode), file_format, **({"lossless": True} if file_format == "WEBP" else {})))
    assert pixels[32, 60].tolist() == [255, 255, 255]
    assert pixels[32, 4].tolist() == ([76, 76, 76] if mode == "LA" else [255, 0, 0])


def test_a_palette_with_a_clear_color_is_laid_on_white() -> None:
    image = Image.new("P", (64, 64), 1)
    image.putpalette([255, 0, 0, 0, 0, 0])
    assert taken(text_of(image, transparency=1))[0, 0].tolist() == [255, 255, 255]


def test_half_clear_edges_are_mixed_with_white() -> None:
    assert taken(text_of(Image.new("RGBA", (64, 64), (0, 0, 0, 128))))[0, 0].tolist() == [127, 127, 127]


def test_sixteen_bits_are_scaled_to_eight() -> None:
    ramp = numpy.tile(numpy.linspace(0, 65535, 64).astype("uint16"), (64, 1))
    pixels = taken(text_of(Image.fromarray(ramp)))[0, :, 0].astype(int)
    assert numpy.abs(pixels - numpy.linspace(0, 255, 64)).max() <= 1


def test_a_large_jpeg_is_scaled_down_while_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # 24 megapixels, as phones make them.
    large = Image.linear_gradient("L").resize((6000, 4000)).convert("RGB")
    text = text_of(large, "JPEG", quality=30)
    sizes = []
    true = images._open
    monkeypatch.setattr(images, "_open", lambda file: sizes.append(true(file)) or sizes[-1])
    pixels = taken(text, 512, 512)
    assert sizes[-1].width * sizes[-1].height <= 1500 * 1000
    assert pixels[10].mean() < 20 < 235 < pixels[-10].mean()


def test_a_turned_jpeg_is_upright_and_no_smaller_than_asked() -> None:
    image = Image.new("RGB", (2000, 200), "blue")
    image.paste("red", (0, 0, 1000, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    pixels = taken(text_of(image, "JPEG", exif=exif.tobytes()), 64, 640)
    assert pixels[10].mean(axis=0)[0] > 200 > 50 > pixels[10].mean(axis=0)[2]
    assert pixels[-10].mean(axis=0)[2] > 200


@pytest.mark.parametrize(
    ("width", "height", "turned", "cropped"),
    [
        (640, 640, 1, 0),
        (1280, 640, 1, 0.5),
        (640, 1280, 1, 0.5),
        (1280, 640, 6, 0.5),
        (640, 480, 6, 0.25),
    ],
)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_the_share_that_is_cropped_is_told(
    width: int, height: int, turned: int, cropped: float, file_format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    text = text_of(Image.new("RGB", (width, height)), file_format, exif=exif.tobytes())
    assert images.decode(text, 64, 64).info["cropped"] == pytest.approx(cropped, abs=0.001)
    # In its own shape nothing is.
    size = (height, width) if turned == 6 else (width, height)
    assert images.decode(text, *size).info["cropped"] == pytest.approx(0, abs=1e-9)


def test_a_png_is_compressed_as_config_yaml_says() -> None:
    made = Image.linear_gradient("L").convert("RGB")
    files = [images.encode(made, "png", 90, level) for level in (0, 1, 9)]
    assert len(files[0]) > len(files[1]) > len(files[2])
    assert {taken(file, 256, 256).tobytes() for file in files} == {made.tobytes()}


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "data:image/png;base64,",
        "data:image/jpeg;base64,",
        "DATA:image/PNG;base64,",
        "data:image/png;charset=utf-8;base64,",
        "data:application/octet-stream;base64,",
        "data:;base64,",
    ],
)
def test_a_data_url_is_taken(prefix: str) -> None:
    assert taken(prefix + text_of(Image.new("RGB", (64, 64), "red")))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_keep_their_colors(mode: str) -> None:
    image = Image.new("RGB", (64, 64), "white").convert(mode)
    pixels = taken(text_of(image, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"))
    assert pixels.min() >= 250


GREEN = (40, 200, 60)


def display_p3() -> bytes:
    """Return an ICC profile of Display P3, of what it must have: its primaries for D50, and a gamma of 2.2."""

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))

    tags = {
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.51512, 0.2412, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.1571, 0.06657, 0.78407),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv" + bytes(4) + struct.pack(">IHH", 1, 563, 0)),
    }
    start, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(tag))
        data += tag
    head = struct.pack(
        ">I4sI4s4s4s12s4s28s", start + len(data), b"", 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"", b"acsp", b""
    )
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_colors_are_those_of_the_profile(mode: str, file_format: str) -> None:
    if mode != "RGB" and file_format != "PNG":
        return
    image = Image.new("RGB", (64, 64), GREEN).convert(mode)
    if mode == "RGBA":
        image.paste((0, 0, 0, 0), (32, 0, 64, 64))
    lossless = {"lossless": True} if file_format == "WEBP" else {"quality": 100}
    pixels = taken(text_of(image, file_format, icc_profile=display_p3(), **lossless))
    # P3's green is greener than sRGB can say.
    assert numpy.abs(pixels[32, 8].astype(int) - (0, 205, 0)).max() <= 4
    assert pixels[32, 60].tolist() == ([255, 255, 255] if mode == "RGBA" else pixels[32, 8].tolist())


@pytest.mark.parametrize("profile", [b"x", b"x" * 10_000, display_p3()[:200], display_p3().replace(b"RGB ", b"CMYK")])
def test_a_profile_that_cannot_be_used_is_ignored(profile: bytes) -> None:
    assert taken(text_of(Image.new("RGB", (64, 64), GREEN), icc_profile=profile))[0, 0].tolist() == list(GREEN)
    assert taken(text_of(Image.new("L", (64, 64), 99), icc_profile=profile))[0, 0].tolist() == [99, 99, 99]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_broken_exif_block_is_no_broken_image(file_format: str) -> None:
    text = text_of(Image.new("RGB", (64, 64), "red"), file_format, exif=b"Exif\0\0garbage" * 9)
    assert taken(text)[0, 0, 0] > 250


def test_nothing_beside_the_pixels_is_kept() -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Comment", "secret")
    for more in (
        {"file_format": "PNG", "pnginfo": chunks},
        {"file_format": "JPEG", "comment": "secret", "dpi": (9, 9)},
    ):
        start = images.decode(text_of(Image.new("RGB", (64, 64)), exif=exif, icc_profile=display_p3(), **more), 64, 64)
        assert set(start.info) == {"shape", "cropped"}
        for output_format in ("png", "jpeg", "webp"):
            found = Image.open(io.BytesIO(base64.b64decode(images.encode(start.copy(), output_format, 90, 1))))
            found.load()
            assert set(found.info) <= {
                "jfif",
                "jfif_version",
                "jfif_unit",
                "jfif_density",
                "loop",
                "background",
                "timestamp",
                "duration",
            }


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_file_says_how_it_was_made_if_config_yaml_asks(
    output_format: str, settings_of: Make, serve: Callable[..., Served]
) -> None:
    def opened(served: Served, **more: Any) -> Image.Image:
        answer = served.ask(prompt="a house, 家\n\0 {x}", output_format=output_format, seed=7, num_images=2, **more)
        found = Image.open(io.BytesIO(base64.b64decode(answer.images[1].image)))
        found.load()
        return found

    plain = opened(serve(settings_of("sd15")))
    found = opened(serve(settings_of("sd15", embed_metadata=True)), negative_prompt="blurry", guidance_scale=5.0)
    text = found.info.get("parameters") or found.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode(
        "utf-16-be"
    )
    assert text == (
        "a house, 家\n\0 {x}\nNegative prompt: blurry\n"
        "Steps: 4, Sampler: PNDMScheduler, CFG scale: 5.0, Seed: 8, Size: 64x64"
    )
    (description,) = ElementTree.fromstring(found.info.get("xmp") or found.info["XML:com.adobe.xmp"])[0]
    mark = description.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"]
    assert mark == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert not {"parameters", "exif", "xmp", "XML:com.adobe.xmp"} & set(plain.info)


def progressive(scans: int) -> bytes:
    """Return a JPEG whose last scan is repeated."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "JPEG", progressive=True)
    file = buffer.getvalue()
    last = file.rindex(b"\xff\xda")
    return file[:last] + file[last:-2] * scans + file[-2:]


def test_a_jpeg_of_many_scans_is_refused() -> None:
    taken(base64.b64encode(progressive(10)).decode())
    text = base64.b64encode(progressive(200)).decode()
    with pytest.raises(ValueError, match="more than 100 scans"):
        images.decode(text, 64, 64)


def test_bytes_that_only_look_like_scans_are_none() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "JPEG")
    # As phones put the video of a moving photo behind the image.
    file = buffer.getvalue() + b"\xff\xda\x81" * 200
    assert taken(base64.b64encode(file).decode())[0, 0].tolist() == [254, 0, 0]


def noise(side: int) -> Image.Image:
    generator = numpy.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype="uint8"))


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_of_megabytes_is_taken(lossless: bool) -> None:
    text = text_of(noise(1500), "WEBP", quality=98, lossless=lossless, method=0)
    assert len(text) > images.HEADER_CHARACTERS
    taken(text)


def test_a_jpeg_with_megabytes_of_metadata_is_taken() -> None:
    file = base64.b64decode(text_of(Image.new("RGB", (64, 64), "red"), "JPEG"))
    segment = b"\xff\xe2\xff\xff" + bytes(65533)
    text = base64.b64encode(file[:2] + segment * 32 + file[2:]).decode()
    assert len(text) > images.HEADER_CHARACTERS
    assert taken(text)[0, 0].tolist() == [254, 0, 0]


def test_the_check_decodes_no_pixel_and_not_the_whole_file(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = text_of(Image.effect_noise((3000, 3000), 100))
    assert len(noise) > 2 * images.HEADER_CHARACTERS
    loaded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: loaded.append(1))
    images.check([noise], BYTES * 2, PIXELS)
    assert loaded == []


@pytest.mark.parametrize(
    ("size", "file_format"), [((9000, 9000), "JPEG"), ((5000, 5000), "PNG"), ((5000, 5000), "WEBP")]
)
def test_too_many_pixels_are_refused_by_the_header(size: tuple[int, int], file_format: str) -> None:
    text = text_of(Image.new("L", size), file_format)
    with pytest.raises(ValueError, match="pixels, more than"):
        images.check([text], BYTES, PIXELS)


def test_images_are_bounded_together() -> None:
    png, jpeg = text_of(Image.new("L", (100, 100))), text_of(Image.new("L", (200, 200)), "JPEG")
    images.check([png, jpeg], BYTES, 20_000)
    with pytest.raises(ValueError, match="the images together have more than 19999 pixels"):
        images.check([png, jpeg], BYTES, 19_999)
    size = max(len(png), len(jpeg)) * 3 // 4
    images.check([png], size, PIXELS)
    images.check([jpeg], size, PIXELS)
    with pytest.raises(ValueError, match=f"the images together are larger than {size} bytes: send smaller files"):
        images.check([png, jpeg], size, PIXELS)


# As a phone writes it: a small image behind the large one. Pillow calls that MPO.
def test_a_jpeg_with_a_second_image_is_a_jpeg() -> None:
    large = Image.linear_gradient("L").resize((6000, 4000)).convert("RGB")
    two = {"file_format": "MPO", "save_all": True, "append_images": [large.resize((64, 64))]}
    text = text_of(large, quality=30, **two)
    assert images._open(base64.b64decode(text)).format == "MPO"
    pixels = taken(text)
    assert pixels[2].mean() < 20 < 235 < pixels[-2].mean()
    file = base64.b64decode(text_of(large.resize((64, 64)), progressive=True, **two))
    # Its last scan, again and again.
    first, second = file.split(b"\xff\xd9", 1)
    scan = first[first.rindex(b"\xff\xda") :]
    many = base64.b64encode(first + scan * images.JPEG_SCANS + b"\xff\xd9" + second).decode()
    with pytest.raises(ValueError, match="more than 100 scans"):
        taken(many)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("side", [64, 1000])
def test_base64_may_have_line_breaks(side: int, ending: str) -> None:
    # A PNG of 1000 x 1000 such pixels is longer than what holds its size.
    noise = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (side, side, 3), dtype="uint8"))
    text = text_of(noise)
    assert (len(text) > images.HEADER_CHARACTERS) == (side == 1000)
    lines = base64.encodebytes(base64.b64decode(text)).decode().replace("\n", ending)
    assert (taken(lines) == taken(text)).all()
    # They are no bytes of the file.
    size = len(base64.b64decode(text))
    images.check([lines], size, PIXELS)


def test_an_image_of_billions_of_pixels_is_told_so() -> None:
    text = text_of(Image.new("1", (30_000, 30_000)))
    with pytest.raises(ValueError, match="far too many pixels"):
        images.check([text], BYTES, PIXELS)

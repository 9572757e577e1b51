"""What a mask says is painted over, and nothing else: on every family that has a pipeline for it."""

import base64
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from conftest import BLOCKS, FAMILIES, Make, Served, pixels_of, text_of
from model import arguments, images, mask
from model.progress import Progress
from PIL import Image
from pydantic import ValidationError

SIDE = 64
# What is white in PART, of which no cell of 16 pixels is painted in part.
BOX, PART = (16, 16, 48, 32), (slice(16, 32), slice(16, 48))
# sdxl-turbo encodes and decodes in float32, and puts its VAE back after that.
INPAINT = [preset for preset in [*FAMILIES, "sdxl-turbo"] if BLOCKS[preset]["inpaint"]]


def noise(width: int = SIDE, height: int = SIDE) -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (height, width, 3), dtype="uint8"))


def fitted(text: str, start: Image.Image, blur: int = 0) -> Image.Image:
    """Return the mask in text for start, an image that had its own shape."""
    start.info["shape"] = start.width / start.height
    return mask.decode(text, start, blur)


def white(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    shape = Image.new("L", size)
    for box in boxes:
        shape.paste(255, box)
    return shape


@pytest.mark.parametrize("preset", INPAINT)
def test_outside_the_mask_each_pixel_is_kept(preset: str, settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of(preset))
    usual = served.image()
    start, shape = noise(), text_of(white(BOX))
    image = text_of(start)
    seen = set()
    for more in ({}, {"mask_blur": 0}, {"mask_blur": 0, "mask_padding": 2}, {"mask_padding": 0}, {"strength": 0.5}):
        soft = numpy.asarray(fitted(shape, start, more.get("mask_blur", 4)))
        found = pixels_of(served.image(image=image, mask=shape, **more))
        changed = (found != numpy.asarray(start)).any(axis=2)
        assert not changed[soft == 0].any(), more
        assert (soft == 0).sum() > 1000
        # A random image: hardly a pixel of it is the same by chance.
        assert changed[PART].mean() > 0.95, more
        seen.add(found.tobytes())
    assert len(seen) == 5
    # Each of several is laid over the image, and made again alone.
    body = {"image": image, "mask": shape, "seed": 5}
    several = [entry.image for entry in served.ask(**body, num_images=2).images]
    assert several == [served.image(**body), served.image(**{**body, "seed": 6})]
    assert served.image() == usual


@pytest.mark.parametrize("preset", INPAINT)
def test_what_is_kept_goes_through_the_pipeline_unchanged(
    preset: str, settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the mask lies where the image does, and what is encoded is decoded again in the same way."""
    served = serve(settings_of(preset))
    pipeline, vae = served.masked, served.pipeline.vae
    module, encoded, decoded = sys.modules[type(pipeline).__module__], [], []
    encode, decode = module.retrieve_latents, vae.decode

    def remember(*arguments: Any, **more: Any) -> Any:
        encoded.append(encode(*arguments, **more))
        return encoded[-1]

    def remember_too(latents: Any, *arguments: Any, **more: Any) -> Any:
        decoded.append(latents)
        return decode(latents, *arguments, **more)

    monkeypatch.setattr(module, "retrieve_latents", remember)
    monkeypatch.setattr(vae, "decode", remember_too)
    served.ask(image=text_of(noise()), mask=text_of(white(BOX)), mask_blur=0)
    before, after = (latents[0].float().reshape(-1, 8, 8) for latents in (encoded[0], decoded[0]))
    kept = torch.ones(8, 8, dtype=bool)
    kept[2:4, 2:6] = False
    torch.testing.assert_close(after[:, kept], before[:, kept], atol=0.02, rtol=0.02)
    assert (after - before)[:, ~kept].abs().max() > 0.1


def test_a_line_is_painted_however_thin(settings_of: Make, serve: Callable[..., Served]) -> None:
    # Between the pixels that the pipeline looks at.
    line = (13, 0, 14, SIDE)
    served, start = serve(settings_of("sd15")), noise()
    found = pixels_of(served.image(image=text_of(start), mask=text_of(white(line)), mask_blur=0))
    changed = (found != numpy.asarray(start)).any(axis=2)
    assert changed[:, 13].mean() > 0.95
    assert not changed[:, 14:].any()
    assert not changed[:, :13].any()
    image, painted, _ = mask.cut_out(start, white(line), None, 8)
    assert image.tobytes() == start.tobytes()
    assert painted.tobytes() == white((8, 0, 16, SIDE)).tobytes()


def test_with_padding_the_pipeline_gets_the_part_alone() -> None:
    start = noise(128, 64)
    image, painted, lay_over = mask.cut_out(start, white((100, 30, 108, 34), size=(128, 64)), 4, 8)
    # 16 x 12 pixels with the padding: 24 x 12 has the shape of the whole.
    assert image.tobytes() == start.resize((128, 64), box=(92, 26, 116, 38)).tobytes()
    assert (image.size, painted.size) == ((128, 64), (128, 64))
    assert numpy.asarray(painted)[32, [0, 64, 127]].tolist() == [0, 255, 0]
    found = numpy.array(lay_over(Image.new("RGB", (128, 64), "red")))
    assert (found[30:34, 100:108] == (255, 0, 0)).all()
    found[30:34, 100:108] = numpy.asarray(start)[30:34, 100:108]
    assert (found == numpy.asarray(start)).all()


@pytest.mark.parametrize("padding", [0, 3, 1000])
def test_the_part_lies_within_the_image_and_has_its_shape(padding: int) -> None:
    generator = numpy.random.default_rng(0)
    for _ in range(2000):
        width, height = (int(side) for side in generator.integers(1, 60, 2))
        (left, right), (top, bottom) = (sorted(generator.integers(0, side, 2)) for side in (width, height))
        part = (int(left), int(top), int(right) + 1, int(bottom) + 1)
        x, y, x2, y2 = mask._around(part, (width, height), padding)
        assert 0 <= x <= part[0] < part[2] <= x2 <= width
        assert 0 <= y <= part[1] < part[3] <= y2 <= height
        scale = max((x2 - x) / width, (y2 - y) / height)
        assert abs(scale * width - (x2 - x)) <= width / height + 1
        assert abs(scale * height - (y2 - y)) <= height / width + 1


def clear(color: tuple[int, int, int]) -> Image.Image:
    """White on the left, and on the right clear, with a hidden color."""
    image = Image.new("RGBA", (SIDE, SIDE), (*color, 0))
    image.paste((255, 255, 255, 255), (0, 0, 32, SIDE))
    return image


HALF = white((0, 0, 32, SIDE))
WHITES = {
    "gray": text_of(HALF),
    "two colors": text_of(HALF.convert("1")),
    "colors": text_of(HALF.convert("RGB")),
    "palette": text_of(HALF.convert("P")),
    "16 bits": text_of(Image.fromarray(numpy.asarray(HALF).astype("uint16") * 257)),
    "clear, hidden black": text_of(clear((0, 0, 0))),
    "clear, hidden white": text_of(clear((255, 255, 255))),
    "clear, gray": text_of(clear((255, 255, 255)).convert("LA")),
    "WebP": text_of(clear((255, 255, 255)), "WEBP", lossless=True),
    "JPEG": text_of(HALF, "JPEG", quality=95),
    "larger": text_of(HALF.resize((512, 512))),
    "as a URL": "data:image/png;base64," + text_of(HALF),
}


@pytest.mark.parametrize("text", WHITES.values(), ids=WHITES)
def test_what_is_white_to_see_is_painted(text: str) -> None:
    found = numpy.asarray(fitted(text, noise())).astype(int)
    assert numpy.abs(found - numpy.asarray(HALF))[:, [*range(30), *range(34, 64)]].max() <= 3


def test_the_mask_is_cropped_as_the_image_is() -> None:
    # Marked by the same colors in both.
    shape = white((40, 16, 64, 32), size=(160, 64))
    start = images.decode(text_of(shape.convert("RGB")), SIDE, SIDE)
    found = numpy.asarray(mask.decode(text_of(shape), start, 0))
    assert (found == numpy.asarray(start)[..., 0]).all()
    assert found.any()


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("blur", [0, 1, 4, 16])
def test_edges_fade_outwards(width: int, blur: int) -> None:
    shape = white((40, 0, 40 + width, 128), size=(128, 128))
    shape.paste(15, (0, 0, 20, 128))  # nearly black
    shape.paste(240, (40, 0, 40 + width, 64))  # nearly white
    row = numpy.asarray(fitted(text_of(shape), noise(128, 128), blur)).astype(int)[64]
    right = row[40 + width :]
    assert (row[40 : 40 + width] == 255).all()
    assert (numpy.diff(right) <= 0).all()
    assert not right[2 * blur :].any()
    assert not row[: 40 - 2 * blur].any() or blur == 16
    if blur > 1:
        assert 100 < right[blur - 1] < 155


def test_what_is_scaled_down_is_as_white_as_before() -> None:
    line = numpy.asarray(fitted(text_of(white((99, 0, 100, 512), size=(512, 512))), noise()))
    assert (line == numpy.asarray(white((12, 0, 13, SIDE)))).all()
    gray = Image.new("L", (512, 512))
    gray.paste(128, (99, 0, 100, 512))
    assert set(numpy.unique(numpy.asarray(fitted(text_of(gray), noise())))) <= {0, 127, 128, 129}


def test_gray_mixes_both(settings_of: Make, serve: Callable[..., Served]) -> None:
    served, start = serve(settings_of("sd15")), noise()
    body = {"image": text_of(start), "mask_blur": 0}
    painted, half = (pixels_of(served.image(**body, mask=text_of(Image.new("L", (8, 8), gray)))) for gray in (255, 128))
    assert numpy.abs(half - (painted + numpy.asarray(start)) / 2).max() <= 2


SHAPE = "its aspect ratio differs from that of image: make it as wide and high"
BLACK = "it is all black, so nothing would change"
WIDE = (256, 64)
UNUSABLE = {
    "black": (Image.new("L", WIDE), BLACK),
    "nearly black": (Image.new("L", WIDE, 15), BLACK),
    "clear": (Image.new("RGBA", WIDE, (255, 255, 255, 0)), BLACK),
    "white where it is cropped": (white((0, 0, 20, 64), size=WIDE), "what is white in it was cropped away"),
    "black and another shape": (Image.new("L", (64, 256)), SHAPE),
    "a square": (Image.new("L", (64, 64), 255), SHAPE),
    "turned": (Image.new("L", (64, 256), 255), SHAPE),
    "larger": (Image.new("L", (512, 128), 255), None),
    "nearly its shape": (Image.new("L", (257, 64), 255), None),
    "a dot and much blur": (white((128, 32, 129, 33), size=WIDE), None),
}


@pytest.mark.parametrize(("shape", "sentence"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_wrong_with_a_mask_is_said(
    shape: Image.Image, sentence: str | None, settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of("sd15"))
    answer = served.ask(image=text_of(noise(*WIDE)), mask=text_of(shape), mask_blur=64, num_inference_steps=1)
    assert getattr(answer, "status_code", None) == (400 if sentence else None)
    if sentence:
        assert sentence.encode() in answer.body


def test_a_damaged_mask_is_refused_by_its_name(settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of("sd15"))
    damaged = base64.b64encode(base64.b64decode(text_of(noise()))[:2000]).decode()
    answer = served.ask(image=text_of(noise()), mask=damaged)
    assert answer.status_code == 400
    assert b"`mask`: it cannot be read" in answer.body


IMAGE, MASK = text_of(noise()), text_of(HALF)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"mask": MASK}, "mask\n.*mask needs one image"),
        ({"image": IMAGE, "mask": "AAAA"}, "mask\n.*it cannot be read"),
        ({"image": IMAGE, "mask": [MASK]}, "mask\n.*valid string"),
        ({"image": [IMAGE], "mask": MASK}, "image\n.*send one file in base64"),
        ({"image": IMAGE, "mask_blur": 4}, "mask_blur\n.*mask_blur has no effect without mask"),
        ({"mask_padding": 4}, "mask_padding\n.*mask_padding has no effect without mask"),
        ({"image": IMAGE, "mask": MASK, "mask_blur": 65}, "mask_blur\n.*less than or equal to 64"),
        ({"image": IMAGE, "mask": MASK, "mask_padding": -1}, "mask_padding\n.*greater than or equal to 0"),
        ({"image": IMAGE, "mask": MASK, "strength": 0.001}, "strength 0.001 is too little"),
    ],
)
def test_what_a_mask_cannot_be_used_with_is_a_sentence(
    body: dict[str, Any], sentence: str, settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of("sd15"))
    with pytest.raises(ValidationError, match=sentence):
        served.ask(**body)


def test_image_and_mask_are_bounded_together(settings_of: Make, serve: Callable[..., Served]) -> None:
    limits = BLOCKS["sd15"]["limits"]
    served = serve(settings_of("sd15", limits={**limits, "image_pixels": 2 * SIDE * SIDE - 1}))
    served.ask(image=IMAGE)
    with pytest.raises(ValidationError, match=r"mask\n.*the images together have more than 8191 pixels"):
        served.ask(image=IMAGE, mask=MASK)


def test_a_family_without_masks_says_so(settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of("sd15", inpaint=None))
    served.ask(image=IMAGE)
    with pytest.raises(ValidationError, match="mask cannot be used by this model: leave it out"):
        served.ask(image=IMAGE, mask=MASK)


def test_strength_is_whole_if_left_out(settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of("sd15"))
    masked = {"image": IMAGE, "mask": MASK}
    assert served.image(**masked) == served.image(**masked, strength=1.0)
    assert served.image(image=IMAGE) == served.image(image=IMAGE, strength=0.6)


def test_lcm_has_other_steps_with_a_mask(settings_of: Make, serve: Callable[..., Served]) -> None:
    # Its own pipeline spreads the steps over what strength leaves, and the one for masks cuts off the rest of them.
    served = serve(settings_of("lcm-dreamshaper"))
    body = {"image": IMAGE, "strength": 0.1}
    served.ask(**body, num_inference_steps=1)
    with pytest.raises(ValidationError, match="must be 10 to 50"):
        served.ask(**body, mask=MASK, num_inference_steps=9)
    for steps in (10, 50):
        served.ask(**body, mask=MASK, num_inference_steps=steps)


def test_what_is_scaled_up_is_said(settings_of: Make, serve: Callable[..., Served]) -> None:
    block = BLOCKS["sd15"]["inpaint"]
    served = serve(settings_of("sd15", inpaint={**block, "max_pixels": SIDE * SIDE}))
    assert served.ask(image=IMAGE, mask=MASK).warnings == []
    cropped, scaled = served.ask(image=IMAGE, mask=MASK, width=2 * SIDE).warnings
    assert cropped.startswith("image: 50% of it had no effect")
    assert scaled == "mask: the model paints 4096 pixels at once, so what it painted was scaled up"


def test_flux2_klein_paints_a_megapixel_at_once(settings_of: Make, serve: Callable[..., Served]) -> None:
    """What the catalog says of it: a larger image keeps its size, and the mask its place."""
    served = serve(settings_of("flux2-klein-4b"))
    pipeline, sizes = served.masked, []
    true = pipeline.image_processor.numpy_to_pil
    pipeline.image_processor.numpy_to_pil = lambda floats: sizes.append(floats.shape[1:3]) or true(floats)
    start, shape = noise(1040, 1024), text_of(white((0, 0, 128, 64), size=(1040, 1024)))
    request = served.request(
        prompt="x", image=text_of(start), mask=shape, width=1040, height=1024, num_inference_steps=1, guidance_scale=1.0
    )
    asked = arguments.of_request(served.settings, request)
    made = served.model._generate(asked, 0, Progress(threading.Event()))
    soft = numpy.asarray(fitted(shape, start, 4))
    same = (numpy.asarray(made) == numpy.asarray(start)).all(axis=2)
    assert same[soft == 0].all()
    assert same[:48, :112].mean() < 0.05
    assert sizes == [(1008, 1024)]
    assert 1008 * 1024 <= served.settings.inpaint.max_pixels < 1040 * 1024

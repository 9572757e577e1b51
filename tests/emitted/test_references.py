"""Images that the prompt may speak of: whole, several, without strength."""

import base64
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from cold_start.pipeline import read_pipeline
from cold_start.weights import WeightsError
from conftest import ALL, BLOCKS, GRAY, Make, Served, pixels_of, text_of
from model import images
from PIL import Image
from pipeline_settings import ReferenceImages, SettingsError
from pydantic import ValidationError

BOUNDS = ReferenceImages(**BLOCKS["flux2-klein-4b"]["reference_images"])


def noise(width: int, height: int, seed: int = 0) -> str:
    return text_of(Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype="uint8")))


@pytest.fixture
def served(settings_of: Make, serve: Callable[..., Served]) -> Served:
    return serve(settings_of("flux2-klein-4b"))


def test_the_families_that_take_references() -> None:
    families = {BLOCKS[preset]["class_name"] for preset in BLOCKS if BLOCKS[preset]["reference_images"]}
    assert families == {"Flux2KleinPipeline", "FluxKontextPipeline", "QwenImageEditPlusPipeline"}
    for block in BLOCKS.values():
        assert not (block["image_to_image"] and block["reference_images"])


def test_each_reference_counts(served: Served) -> None:
    usual = served.image()
    one, other = noise(64, 64), noise(96, 64, 1)
    made = [served.image(image=image) for image in (one, [one], other, [one, other], [other, one])]
    assert made[0] == made[1]
    assert len({usual, *made}) == 5
    size = Image.open(io.BytesIO(base64.b64decode(served.image(image=other, width=128, height=64)))).size
    assert size == (128, 64)
    # Without them, the model is as it was.
    assert served.image() == usual


def test_the_pipeline_cuts_nothing_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    true = served.pipeline.image_processor.preprocess

    def preprocess(image: Any, height: int, width: int, **more: Any) -> Any:
        sizes.append((image.size, (width, height)))
        return true(image, height=height, width=width, **more)

    monkeypatch.setattr(served.pipeline.image_processor, "preprocess", preprocess)
    served.ask(image=[noise(100, 70), noise(20, 40), noise(300, 50)], num_inference_steps=1)
    assert sizes == [((96, 64),) * 2, ((64, 128),) * 2, ((384, 64),) * 2]


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((64, 64), (64, 64)),
        ((1024, 1024), (1024, 1024)),
        ((4096, 4096), (1024, 1024)),
        ((4000, 1000), (2048, 512)),
        ((1, 6), (64, 384)),
        ((79, 474), (64, 464)),
    ],
)
def test_a_reference_keeps_its_shape(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    found = images.decode_reference(text_of(Image.linear_gradient("L").resize(size)), BOUNDS, 16)
    assert (found.mode, found.size) == ("RGB", scaled)
    gray = numpy.asarray(found)[..., 0].mean(axis=1)
    assert gray[0] < 30
    assert gray[-1] > 215


@pytest.mark.parametrize("side", range(1, 400, 7))
def test_whatever_is_let_through_the_pipeline_takes(side: int) -> None:
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    for ratio in (1.0, 2.5, 5.99, 6.0):
        found = images.decode_reference(text_of(Image.new("L", (int(side * ratio), side))), BOUNDS, 16)
        Flux2ImageProcessor.check_image_input(found)
        assert found.width * found.height <= BOUNDS.max_pixels
        assert all(each % 16 == 0 for each in found.size)


def test_a_reference_is_laid_on_white_and_turned_upright() -> None:
    clear = images.decode_reference(text_of(Image.new("RGBA", (64, 64))), BOUNDS, 16)
    assert clear.getextrema() == ((255, 255),) * 3
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = io.BytesIO()
    Image.new("RGB", (128, 64)).save(buffer, "JPEG", exif=exif.tobytes())
    turned = base64.b64encode(buffer.getvalue()).decode()
    assert images.decode_reference(turned, BOUNDS, 16).size == (64, 128)


def test_a_reference_that_is_too_long_is_refused(served: Served) -> None:
    answer = served.ask(image=[noise(64, 64), noise(700, 100)])
    assert answer.status_code == 400
    assert b"`image`: it is more than 6 times as long as wide: crop it" in answer.body


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"image": noise(64, 64), "strength": 0.5}, "strength has no effect without mask: image is a reference"),
        ({"strength": 0.5}, "strength has no effect without image"),
        ({"image": [noise(64, 64)] * 5}, "image\n.*one file, or a list of 1 to 4"),
        ({"image": []}, "image\n.*one file, or a list of 1 to 4"),
        ({"image": [noise(64, 64), 5]}, "image\n.*one file, or a list of 1 to 4"),
        ({"image": [noise(64, 64), "AAAA"]}, "image\n.*it cannot be read"),
        ({"image": [noise(64, 64)] * 2, "mask": noise(64, 64)}, "mask\n.*mask needs one image"),
    ],
)
def test_what_cannot_be_a_reference_is_a_sentence(served: Served, body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        served.ask(**body)


def test_references_are_bounded_together(settings_of: Make, serve: Callable[..., Served]) -> None:
    limits = BLOCKS["flux2-klein-4b"]["limits"]
    served = serve(settings_of("flux2-klein-4b", limits={**limits, "image_pixels": 3 * 64 * 64}))
    served.ask(image=[noise(64, 64)] * 3, num_inference_steps=1)
    with pytest.raises(ValidationError, match="the images together have more than 12288 pixels"):
        served.ask(image=[noise(64, 64)] * 4)


def test_with_a_mask_image_is_what_is_painted_on(served: Served) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 16))
    start = noise(64, 64)
    body = {"image": start, "mask": text_of(mask), "mask_blur": 0}
    found, before = pixels_of(served.image(**body)), pixels_of(start)
    assert (found[16:] == before[16:]).all()
    assert (found[:16] != before[:16]).any(axis=2).mean() > 0.95
    assert served.image(**body, strength=0.5) != served.image(**body)


@pytest.fixture
def kontext(settings_of: Make, serve: Callable[..., Served]) -> Served:
    return serve(settings_of("flux-kontext-dev"))


def test_kontext_edits_one_image_at_the_size_that_is_asked_for(kontext: Served) -> None:
    one, other = noise(64, 64), noise(96, 64, 1)
    made = [kontext.image(**body) for body in ({}, {"image": one}, {"image": other})]
    assert len(set(made)) == 3
    for size in ((64, 64), (128, 64), (64, 192), (1008, 1040)):
        body = {"width": size[0], "height": size[1], "num_inference_steps": 1}
        for more in ({}, {"image": one}):
            assert Image.open(io.BytesIO(base64.b64decode(kontext.image(**body, **more)))).size == size
    with pytest.raises(ValidationError, match=r"image\n.*send one file in base64"):
        kontext.ask(image=[one])


def test_kontext_paints_the_mask_alone(kontext: Served) -> None:
    mask = Image.new("L", (128, 64))
    mask.paste(255, (0, 0, 32, 64))
    start = noise(128, 64)
    body = {"image": start, "mask": text_of(mask), "mask_blur": 0, "width": 128}
    found, before = pixels_of(kontext.image(**body)), pixels_of(start)
    assert found.shape == before.shape
    assert (found[:, 32:] == before[:, 32:]).all()
    assert (found[:, :32] != before[:, :32]).any(axis=2).mean() > 0.95
    assert kontext.image(**body, strength=0.5) != kontext.image(**body)


def test_what_kontext_would_squeeze_is_refused(kontext: Served) -> None:
    long, white = noise(250, 100), text_of(Image.new("L", (64, 64), 255))
    answer = kontext.ask(image=long)
    assert answer.status_code == 400
    assert b"`image`: it is more than 2.4 times as long as wide: crop it" in answer.body
    answer = kontext.ask(image=noise(64, 64), mask=white, width=256)
    assert answer.status_code == 400
    assert b"`width`: with a mask, a side is at most 2.4 times as long as the other" in answer.body


def test_a_long_image_can_be_painted_where_the_pipeline_keeps_its_shape(served: Served) -> None:
    white = text_of(Image.new("L", (448, 64), 255))
    assert served.image(image=noise(448, 64), mask=white, width=448)


def test_a_pipeline_that_is_not_told_the_area_is_refused(settings_of: Make) -> None:
    inpaint = {**BLOCKS["flux-kontext-dev"]["inpaint"], "class_name": "FluxInpaintPipeline"}
    with pytest.raises(SettingsError, match=r"inpaint\.class_name, FluxInpaintPipeline: there is no max_area"):
        read_pipeline(settings_of("flux-kontext-dev", inpaint=inpaint), "cpu")


@pytest.fixture
def edit(settings_of: Make, serve: Callable[..., Served]) -> Served:
    """Qwen-Image-Edit, of which each request has an image."""
    return serve(settings_of("qwen-image-edit-2511", cpu_dtype="float32"))


def test_each_image_to_edit_counts_and_so_does_their_order(edit: Served) -> None:
    one, other = noise(64, 64), noise(96, 64, 1)
    made = [edit.image(image=image) for image in (one, [one], other, [one, other], [other, one], [one, other, GRAY])]
    assert made[0] == made[1]
    assert len(set(made)) == 5
    body = {"image": other, "num_inference_steps": 2}
    for size in ((128, 64), (64, 192)):
        found = edit.image(**body, width=size[0], height=size[1])
        assert Image.open(io.BytesIO(base64.b64decode(found))).size == size


@pytest.mark.parametrize("body", [{}, {"image": None}, {"image": []}, {"image": [GRAY] * 4}, {"image": [None]}])
def test_without_an_image_to_edit_there_is_one_sentence(edit: Served, body: dict[str, Any]) -> None:
    assert edit.request.model_json_schema()["required"] == ["prompt", "image"]
    with pytest.raises(
        ValidationError, match="send one file, or a list of 1 to 3, in base64 or as a data: URL"
    ) as caught:
        edit.request.parse_obj({"prompt": "x", **body})
    (error,) = caught.value.errors()
    assert error["loc"] == ("image",)


def test_an_image_to_edit_that_is_too_long_is_refused(edit: Served) -> None:
    answer = edit.ask(image=noise(410, 100))
    assert answer.status_code == 400
    assert b"`image`: it is more than 4 times as long as wide: crop it" in answer.body


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a <|image_pad|> boat", "<|image_pad|> marks the place of a file"),
        ("<|video_pad|>", "<|video_pad|> marks the place of a file"),
        # Three of the four bytes of a character are tokens of their own.
        ("\U0001f6a2" * 1000, "it has 4000 tokens, and this model reads 3300: shorten it"),
    ],
)
def test_a_prompt_that_the_pipeline_would_fail_on_is_refused(edit: Served, field: str, text: str, words: str) -> None:
    answer = edit.ask(**{field: text}, guidance_scale=4.0)
    assert answer.status_code == 400
    assert f"`{field}`: {words}" in answer.body.decode()
    assert edit.healthy()


@pytest.mark.skipif(not ALL, reason="TEST_ALL is not set: with images of their real sizes this takes 30 s")
def test_the_longest_prompt_with_the_most_and_longest_images_is_read(edit: Served) -> None:
    """At their real sizes, of which text and images together fill the transformer's positions."""
    tokens, reads = [], edit.pipeline.transformer.register_forward_hook

    def note(_: Any, rest: Any, given: dict[str, Any], made: Any) -> None:
        longest = max(side for each in given["img_shapes"][0] for side in each) // 2
        tokens.append(given["encoder_hidden_states"].shape[1] + longest)
        raise ValueError("one step is enough")  # of seconds

    with reads(note, with_kwargs=True), pytest.MonkeyPatch.context() as patch:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

        patch.setattr(module, "VAE_IMAGE_SIZE", 1024 * 1024)
        patch.setattr(module, "CONDITION_IMAGE_SIZE", 384 * 384)
        text = "\U0001f6a2" * 825
        few = {"prompt": text, "num_inference_steps": 2, "guidance_scale": 1.0, "width": 64, "height": 64}
        for sides in ((2048, 512), (1024, 1024), (512, 1500)):
            with pytest.raises(ValueError, match="one step is enough"):
                edit.ask(image=[text_of(Image.new("RGB", sides, "gray"))] * 3, **few)
    assert max(tokens) <= 4096
    assert max(tokens) > 3900


def test_the_text_encoder_is_told_what_is_an_image(edit: Served) -> None:
    """Without it, it would take an image for a line of words, and no error says so."""
    edit.ask(image=[noise(64, 64), noise(128, 64, 1)], num_inference_steps=2)
    encoder, processor = edit.pipeline.text_encoder, edit.pipeline.processor
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    files = [Image.new("RGB", (112, 56)), Image.new("RGB", (56, 56))]
    given = processor(text=[f"a {place} b {place}"], images=files, return_tensors="pt")
    kinds = given.pop("mm_token_type_ids")
    assert kinds.sum() == 4 * 2 + 4
    with torch.no_grad():
        found, right = (
            encoder(**given, **more, output_hidden_states=True) for more in ({}, {"mm_token_type_ids": kinds})
        )
        plain = encoder.forward(**given, output_hidden_states=True)
    assert (found.hidden_states[-1] == right.hidden_states[-1]).all()
    assert (found.hidden_states[-1] != plain.hidden_states[-1]).any()


def test_the_processor_needs_no_torchvision_and_is_the_same_with_it(edit: Served) -> None:
    processor = edit.pipeline.processor
    assert isinstance(processor, transformers.Qwen2VLProcessor)
    assert type(processor.image_processor) is transformers.Qwen2VLImageProcessorPil
    assert "torchvision" not in sys.modules


@pytest.mark.parametrize("file", ["preprocessor_config.json", "tokenizer.json"])
def test_a_processor_that_cannot_be_read_is_a_sentence(
    file: str, copy_of: Callable[[str], Path], settings_of: Make
) -> None:
    folder = copy_of("qwen-image-edit-2511")
    broken = folder / "pipeline" / "processor" / file
    broken.write_text(broken.read_text()[:100])
    with pytest.raises(WeightsError, match=r"^The pipeline in .* cannot be put together: "):
        read_pipeline(settings_of("qwen-image-edit-2511", folder), "cpu")


def test_what_takes_references_can_need_one(settings_of: Make, serve: Callable[..., Served]) -> None:
    needed = {**BLOCKS["flux2-klein-4b"]["reference_images"], "required": True}
    served = serve(settings_of("flux2-klein-4b", reference_images=needed))
    assert served.image() != served.image(image=noise(64, 64))
    with pytest.raises(ValidationError, match="image"):
        served.request(prompt="x")


def test_a_processor_of_another_kind_is_a_sentence(settings_of: Make) -> None:
    with pytest.raises(WeightsError, match="cannot be put together"):
        read_pipeline(settings_of("qwen-image-edit-2511", load_kwargs={"processor": "abc"}), "cpu")

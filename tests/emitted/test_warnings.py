"""Answers warn about parts of a request without effect, and about nothing else."""

import base64
import io
from collections.abc import Callable

import pytest
from conftest import BLOCKS, FAMILIES, Make, Served, text_of
from PIL import Image

# ERNIE-Image reads more than a prompt may have, of which each character is a token of the tiny pipelines.
CUT = [p for p in FAMILIES if BLOCKS[p]["prompt_tokens"]["count"] < BLOCKS[p]["limits"]["prompt_characters"]]
TEXTS = [(preset, "prompt") for preset in CUT]
TEXTS += [(preset, "negative_prompt") for preset in CUT if BLOCKS[preset]["negative_prompt"]]
# Those whose schedulers add noise, and never replace the image by it.
UNETS = [
    preset
    for preset in FAMILIES
    if BLOCKS[preset]["class_name"].startswith(("StableDiffusionP", "StableDiffusionXL", "LatentCons"))
]
OTHER = str.maketrans("boat", "xyzw")


@pytest.mark.parametrize(("preset", "field"), TEXTS)
def test_the_words_that_the_text_encoder_does_not_read_are_told(
    preset: str, field: str, settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of(preset, cpu_dtype="float32", call_kwargs=BLOCKS[preset]["call_kwargs"]))
    guidance = {"guidance_scale": 5.0} if BLOCKS[preset]["negative_prompt"] else {}
    words = "boat " * (BLOCKS[preset]["limits"]["prompt_characters"] // 5)
    answer = served.ask(**guidance, **{field: words})
    (warning,) = answer.warnings
    assert warning.startswith(f"{field}: the model reads {BLOCKS[preset]['prompt_tokens']['count']} tokens")
    rest = warning.split("had no effect: ", 1)[1]
    read = words.removesuffix(rest)
    assert rest
    assert read + rest == words
    # Other letters in the same places change nothing there, and something before.
    assert served.ask(**guidance, **{field: read + rest.translate(OTHER)}).images == answer.images
    assert served.ask(**guidance, **{field: read.translate(OTHER) + rest}).images != answer.images
    # All of what is left is read.
    assert served.ask(**guidance, **{field: read}).warnings == []


@pytest.mark.parametrize("left_out", [["text_encoder_3"], ["text_encoder_3", "tokenizer_3"]])
def test_without_its_largest_text_encoder_less_is_read(
    left_out: list[str], settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of("sd3-medium", load_kwargs=dict.fromkeys(left_out)))
    (warning,) = served.ask(prompt="x" * 80).warnings
    assert warning == "prompt: the model reads 75 tokens of it, so this rest had no effect: xxxxx"


def test_each_of_two_texts_is_told(settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of("sd15"))
    found = served.ask(prompt="x" * 100, negative_prompt="y" * 100, guidance_scale=5.0).warnings
    assert [warning.split(": ")[0] for warning in found] == ["prompt", "negative_prompt"]
    assert [warning[-25:] for warning in found] == ["x" * 25, "y" * 25]


@pytest.mark.parametrize("preset", [preset for preset in FAMILIES if BLOCKS[preset]["image_to_image"]])
def test_what_is_cropped_of_an_image_is_told(preset: str, settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of(preset))
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((128, 64)).save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    warnings = served.ask(image=image, strength=0.5).warnings
    assert warnings == ["image: 50% of it had no effect, as it was cropped to the shape of width x height."]
    assert served.ask(image=image, strength=0.5, width=128).warnings == []


@pytest.mark.parametrize("preset", [preset for preset in FAMILIES if BLOCKS[preset]["image_to_image"]])
def test_a_start_image_that_noise_replaces_whole_is_told(
    preset: str, settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of(preset))
    files = [text_of(Image.new("RGB", (64, 64), color)) for color in ("orange", "navy")]
    for strength in (0.5, 0.8, 1.0):
        answers = [served.ask(image=file, strength=strength) for file in files]
        lost = answers[0].images == answers[1].images
        assert lost == any("image: it had no effect" in told for told in answers[0].warnings), strength
        assert len(answers[0].warnings) == lost
    assert lost == (preset not in UNETS)


def test_almost_all_is_not_all(settings_of: Make, serve: Callable[..., Served]) -> None:
    (told,) = serve(settings_of("sd15")).ask(image=text_of(Image.new("L", (1, 2000))), strength=0.5).warnings
    assert told.startswith("image: 99% of it had no effect")


def test_a_lora_in_the_prompt_is_told(settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of("sd15"))
    (told,) = served.ask(prompt="a <lora:pixel-art:0.8> house <lora:pixel-art:0.8>").warnings
    assert told == "prompt: <lora:pixel-art:0.8> was read as words. This model has no LoRA of that name."
    assert served.ask(prompt="a <lora> house <b>").warnings == []


@pytest.mark.parametrize("preset", [preset for preset in FAMILIES if BLOCKS[preset]["negative_prompt"]])
def test_guidance_below_one_is_told_where_it_is_none(
    preset: str, settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of(preset))
    half, one = (served.ask(guidance_scale=guidance) for guidance in (0.5, 1.0))
    assert one.warnings == []
    assert (half.images == one.images) == (len(half.warnings) == 1)


def test_a_quality_of_png_is_told(settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of("sd15"))
    assert served.ask(quality=80).warnings == ["quality: it has no effect on png."]
    assert served.ask(quality=80, output_format="webp").warnings == []


def test_guidance_of_a_model_without_is_told(settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of("flux2-klein-4b"))
    usual = served.ask()
    assert usual.warnings == []
    other = served.ask(guidance_scale=0.5)
    assert other.warnings == ["guidance_scale: this model has no guidance, so it had no effect."]
    assert other.images == usual.images

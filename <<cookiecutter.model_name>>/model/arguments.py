"""Turns a request into the arguments of the pipeline."""

import contextlib
import dataclasses
import math
import secrets
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import HTTPException

from model import mask, picture
from model.request import MAX_SEED, SETTINGS, GenerationRequest
from pipeline_settings import ImageToImage, Inpaint


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is the same for all images of a request: the arguments of the pipeline, and what is done with each image.

    other: the pipeline that takes the first one's place.
    """

    arguments: dict[str, Any]
    other: ImageToImage | Inpaint | None = None
    finish: Callable[[Any], Any] = lambda made: made


def seeds(request: GenerationRequest) -> list[int]:
    """Return one seed for each image."""
    first = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    return [(first + i) % (MAX_SEED + 1) for i in range(request.num_images)]


def of_request(request: GenerationRequest) -> Asked:
    """Return what is the same for all images of the request. Raises HTTPException (400) for a picture without use."""
    arguments = {
        "prompt": request.prompt,
        "num_inference_steps": request.num_inference_steps,
        SETTINGS.guidance_parameter: request.guidance_scale,
        **SETTINGS.call_kwargs,
    }
    if request.negative_prompt:
        arguments["negative_prompt"] = request.negative_prompt
    size, multiple = {"width": request.width, "height": request.height}, SETTINGS.limits.size_multiple
    if request.image is None:
        return Asked(arguments | size)
    references = SETTINGS.reference_images
    if references and request.mask is None:
        texts = request.image if isinstance(request.image, list) else [request.image]
        with _of_field("image"):
            found = [picture.decode_reference(text, references, multiple) for text in texts]
        return Asked(arguments | size | {"image": found})
    assert isinstance(request.image, str)  # or the request is refused
    with _of_field("image"):
        start = picture.decode(request.image, request.width, request.height)
    arguments |= {"strength": request.strength}
    if request.mask is None:
        other = SETTINGS.image_to_image
        assert other  # the same
        return Asked(arguments | {"image": start} | (size if other.takes_size else {}), other)
    with _of_field("mask"):
        shape = mask.decode(request.mask, **size, blur=request.mask_blur)
        if not math.isclose(shape.info["shape"], start.info["shape"], rel_tol=0.02):
            raise ValueError("it has another shape than image: make it as wide and high")
    image, mask_image, finish = mask.cut_out(start, shape, request.mask_padding, multiple)
    return Asked(arguments | size | {"image": image, "mask_image": mask_image}, SETTINGS.inpaint, finish)


@contextlib.contextmanager
def _of_field(name: str) -> Iterator[None]:
    """Turn a ValueError into a 400, in the words that Truss has for a field."""
    try:
        yield
    except ValueError as error:
        raise HTTPException(400, f"Input Parsing Error:\n  `{name}`: Value error, {error}.") from None


def of_image(seed: int, steps: int, stepped: Callable[[int], None]) -> dict[str, Any]:
    """Return what is one image's own. stepped: told after each step how many there are. steps: how many were asked."""
    import torch

    def after_step(*step: Any) -> Any:
        # The pipeline, which comes first, knows how many strength leaves or the scheduler adds. PixArt's callback gets
        # none: it is called as often as was asked.
        stepped(getattr(step[0], "num_timesteps", steps))
        return step[-1]

    # A generator on the CPU gives the same noise on every device.
    return {"generator": torch.Generator("cpu").manual_seed(seed), SETTINGS.step_callback: after_step}


def loras(request: GenerationRequest) -> dict[str, float]:
    """Return the scale of each LoRA that the request chooses, by its folder: see lora.choose()."""
    known = {lora.name: lora for lora in SETTINGS.loras}
    chosen = [(known[each.name], each.scale) for each in request.loras]
    return {lora.folder: lora.scale if scale is None else scale for lora, scale in chosen}


def warnings(request: GenerationRequest, pipeline: Any, asked: Asked) -> list[str]:
    """Return a sentence for each part of the request that had no effect. asked: what of_request() made of it."""
    name, count = SETTINGS.prompt_tokens.tokenizer, SETTINGS.prompt_tokens.count
    tokenizer = getattr(pipeline, name)
    if getattr(pipeline, name.replace("tokenizer", "text_encoder")) is None:
        # Left out by load_kwargs. What is left is CLIP's, which puts a token at each end of a text.
        tokenizer, count = pipeline.tokenizer, pipeline.tokenizer.model_max_length - 2
    found = []
    for field in ("prompt", "negative_prompt"):
        text = getattr(request, field) or ""
        places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        if len(places) > count:
            rest = text[places[count][0] :]
            found.append(f"{field}: the model reads {count} tokens of it, so this rest had no effect: {rest}")
    image = asked.arguments.get("image")
    lost = 0.0 if image is None or isinstance(image, list) else image.info["cropped"]
    if lost > 0.01:  # as width and height are multiples
        found.append(f"image: {lost:.0%} of it had no effect, as it was cropped to the shape of width x height.")
    most = SETTINGS.inpaint.max_pixels if SETTINGS.inpaint and request.mask else None
    if most and request.width * request.height > most:
        found.append(f"mask: the model paints {most} pixels at once, so what it painted was scaled up")
    if request.output_format == "png" and request.quality != GenerationRequest.model_fields["quality"].default:
        found.append("quality: a png has none, so it had no effect.")
    if SETTINGS.limits.guidance_scale <= 1 and request.guidance_scale != SETTINGS.defaults.guidance_scale:
        found.append("guidance_scale: this model has no guidance, so it had no effect.")
    return found

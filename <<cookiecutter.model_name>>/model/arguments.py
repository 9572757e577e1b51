"""Turns a request into the pipeline's arguments, and warns about parts without effect."""

import contextlib
import dataclasses
import json
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import HTTPException

from model import images, mask
from model.request import MAX_SEED, GenerationRequest
from pipeline_settings import ImageToImage, Inpaint, PromptTokens, Settings

LORA_TAG = re.compile(r"(<lora:([^:>]+)(?::([^:>]*))?[^>]*>)")  # as other tools read it in a prompt


@dataclasses.dataclass(frozen=True)
class Asked:
    """What all images of a request share. other: the pipeline that replaces the first one."""

    arguments: dict[str, Any]
    other: ImageToImage | Inpaint | None = None
    finish: Callable[[Any], Any] = lambda made: made


def seeds(request: GenerationRequest) -> list[int]:
    """Return one seed for each image."""
    first = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    return [(first + i) % (MAX_SEED + 1) for i in range(request.num_images)]


def of_request(settings: Settings, request: GenerationRequest) -> Asked:
    """Return the arguments for all images of the request. Raises HTTPException (400) for an unusable image."""
    arguments = {
        "prompt": request.prompt,
        "num_inference_steps": request.num_inference_steps,
        settings.guidance_parameter: request.guidance_scale,
        **settings.call_kwargs,
    }
    if request.negative_prompt:
        arguments["negative_prompt"] = request.negative_prompt
    size, multiple = {"width": request.width, "height": request.height}, settings.limits.size_multiple
    size |= {settings.area_parameter: request.width * request.height} if settings.area_parameter else {}
    if request.image is None:
        return Asked(arguments | size)
    references = settings.reference_images
    if references and request.mask is None:
        texts = request.image if isinstance(request.image, list) else [request.image]
        with _of_field("image"):
            found = [images.decode_reference(text, references, multiple) for text in texts]
        return Asked(arguments | size | {"image": found if references.count > 1 else found[0]})
    assert isinstance(request.image, str)  # or the request is refused
    short, long = sorted((request.width, request.height))
    if references and settings.area_parameter and long > references.max_ratio * short:
        with _of_field("width"):  # the pipeline would squeeze the image to one of its resolutions
            raise ValueError(f"with a mask, a side is at most {references.max_ratio:g} times as long as the other")
    with _of_field("image"):
        start = images.decode(request.image, request.width, request.height)
    arguments |= {"strength": request.strength}
    if request.mask is None:
        other = settings.image_to_image
        assert other  # the same
        return Asked(arguments | {"image": start} | (size if other.takes_size else {}), other)
    with _of_field("mask"):
        shape = mask.decode(request.mask, start, request.mask_blur)
    image, mask_image, finish = mask.cut_out(start, shape, request.mask_padding, multiple)
    return Asked(arguments | size | {"image": image, "mask_image": mask_image}, settings.inpaint, finish)


@contextlib.contextmanager
def _of_field(name: str) -> Iterator[None]:
    """Turn a ValueError into a 400, in Truss's format for a field."""
    try:
        yield
    except ValueError as error:
        raise HTTPException(400, f"Input Parsing Error:\n  `{name}`: {error}.") from None


def of_image(settings: Settings, seed: int, steps: int, stepped: Callable[[int], None]) -> dict[str, Any]:
    """Return the per-image arguments. stepped: called with the total after each step. steps: how many were asked."""
    import torch

    def after_step(*step: Any) -> Any:
        # num_timesteps reflects strength and extra scheduler steps. PixArt's callback gets no pipeline.
        stepped(getattr(step[0], "num_timesteps", steps))
        return step[-1]

    # A CPU generator gives the same noise on every device.
    return {"generator": torch.Generator("cpu").manual_seed(seed), settings.step_callback: after_step}


def loras(settings: Settings, request: GenerationRequest) -> dict[str, float]:
    """Return the scale of each LoRA that the request chooses, by its name: see Loras.chosen()."""
    usual = {lora.name: lora.scale for lora in settings.loras}
    return {each.name: usual[each.name] if each.scale is None else each.scale for each in request.loras}


def warnings(settings: Settings, request: GenerationRequest, pipeline: Any, asked: Asked) -> list[str]:
    """Return a sentence for each part of the request without effect. asked: the result of of_request()."""
    image, quality = asked.arguments.get("image"), GenerationRequest.model_fields["quality"].default
    cropped = 0.0 if image is None or isinstance(image, list) else image.info["cropped"]
    at_once = (settings.inpaint.max_pixels if settings.inpaint and request.mask else None) or float("inf")
    guided = settings.limits.guidance_scale > 1 or request.guidance_scale == settings.defaults.guidance_scale
    # At their first step flow models see noise alone, and others a little of the image.
    all_steps = getattr(pipeline, "num_timesteps", 0) >= request.num_inference_steps
    flow = not hasattr(pipeline.scheduler, "alphas_cumprod")
    lost = asked.other is not None and asked.other == settings.image_to_image and all_steps and flow
    # Where there are negative prompts, guidance is the second of two calls.
    off = settings.negative_prompt and not getattr(pipeline, "do_classifier_free_guidance", False)
    without = off and 0 < request.guidance_scale < 1
    silent = ", ".join(name for name, scale in loras(settings, request).items() if scale == 0)
    share, scaled_up = min(cropped, 0.99), request.width * request.height > at_once
    rules = {
        # As width and height are multiples, a little always is.
        f"image: {share:.0%} of it had no effect, as it was cropped to the shape of width x height.": cropped > 0.01,
        "image: it had no effect, as strength lets all steps begin from noise: lower it, or ask for more steps.": lost,
        f"mask: the model paints {at_once} pixels at once, so what it painted was scaled up": scaled_up,
        "quality: it has no effect on png.": request.output_format == "png" and request.quality != quality,
        "guidance_scale: this model has no guidance, so it had no effect.": not guided,
        f"guidance_scale: below 1 there is no guidance, so {request.guidance_scale} is the same as 1.": without,
        f"loras: the scale of {silent} is 0, so it had no effect.": bool(silent),
    }
    texts = [*_unread(settings.prompt_tokens, request, pipeline), *_loras_as_words(settings, request.prompt)]
    return [*texts, *(told for told, holds in rules.items() if holds)]


def _loras_as_words(settings: Settings, prompt: str) -> Iterator[str]:
    for tag, name, scale in dict.fromkeys(LORA_TAG.findall(prompt)):
        instead = f'Send "loras": [{{"name": "{name}", "scale": {scale or 1}}}] instead.'
        told = instead if name in settings.lora_names else "This model has no LoRA of that name."
        yield f"prompt: {tag} was read as words. {told}"


def described(settings: Settings, request: GenerationRequest, seed: int, sampler: str) -> str | None:
    """Return what the image's file says, as AUTOMATIC1111's web UI writes it and many tools read it. None: nothing."""
    if not settings.embed_metadata:
        return None
    chosen = ", ".join(f"{name}: {scale}" for name, scale in loras(settings, request).items())
    said = {"Steps": request.num_inference_steps, "Sampler": sampler, "CFG scale": request.guidance_scale, "Seed": seed}
    said |= {"Size": f"{request.width}x{request.height}", "Denoising strength": request.strength}
    said |= {"LoRAs": json.dumps(chosen) if chosen else None}
    negative = f"Negative prompt: {request.negative_prompt}\n" if request.negative_prompt else ""
    settled = ", ".join(f"{name}: {value}" for name, value in said.items() if value is not None)
    return f"{request.prompt}\n{negative}{settled}"


def check_prompts(settings: Settings, request: GenerationRequest, pipeline: Any) -> None:
    """Raise HTTPException (400) for a prompt that a pipeline which reads images with it would fail on."""
    most, processor = settings.prompt_tokens.count, pipeline.processor
    for name in ("prompt", "negative_prompt"):
        tokens = processor.tokenizer.tokenize(getattr(request, name) or "")
        with _of_field(name):
            if len(tokens) > most:
                raise ValueError(f"it has {len(tokens)} tokens, and this model reads {most}: shorten it")
            for mark in {processor.image_token, processor.video_token}.intersection(tokens):
                raise ValueError(f"{mark} marks the place of a file for this model: leave it out")


def _unread(reads: PromptTokens, request: GenerationRequest, pipeline: Any) -> Iterator[str]:
    tokenizer, count = getattr(pipeline, reads.tokenizer), reads.count
    if getattr(pipeline, reads.tokenizer.replace("tokenizer", "text_encoder")) is None:
        # load_kwargs leaves out this encoder. The remaining one is CLIP's, which adds a token at each end.
        tokenizer, count = pipeline.tokenizer, pipeline.tokenizer.model_max_length - 2
    for field in ("prompt", "negative_prompt"):
        text = getattr(request, field) or ""
        places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        if len(places) > count:
            rest = text[places[count][0] :]
            yield f"{field}: the model reads {count} tokens of it, so this rest had no effect: {rest}"

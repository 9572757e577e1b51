"""Turns a request into the arguments of the pipeline."""

import secrets
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException

from model import picture
from model.request import MAX_SEED, SETTINGS, GenerationRequest


def seeds(request: GenerationRequest) -> list[int]:
    """Return one seed for each image."""
    first = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    return [(first + i) % (MAX_SEED + 1) for i in range(request.num_images)]


def of_request(request: GenerationRequest) -> dict[str, Any]:
    """Return what is the same for all images of the request. Raises HTTPException (400) for a damaged image."""
    arguments = {
        "prompt": request.prompt,
        "num_inference_steps": request.num_inference_steps,
        SETTINGS.guidance_parameter: request.guidance_scale,
        # Floats: in them a picture that is not a number can be told from a black one.
        "output_type": "np",
        **SETTINGS.call_kwargs,
    }
    if request.negative_prompt:
        arguments["negative_prompt"] = request.negative_prompt
    if request.image is None or SETTINGS.image_to_image.takes_size:
        arguments |= {"width": request.width, "height": request.height}
    if request.image is not None:
        try:
            start = picture.decode(request.image, request.width, request.height)
        except ValueError as error:
            # As Truss says it of a field.
            raise HTTPException(400, f"Input Parsing Error:\n  `image`: Value error, {error}.") from None
        arguments |= {"image": start, "strength": request.strength}
    return arguments


def of_image(seed: int, stop: Callable[[], bool]) -> dict[str, Any]:
    """Return what is one image's own. stop: asked after each step, True ends the work with HTTPException (499)."""
    import torch

    def after_step(*step: Any) -> Any:
        if stop():
            raise HTTPException(499, "The client disconnected.")
        return step[-1]

    # A generator on the CPU gives the same noise on every device.
    return {"generator": torch.Generator("cpu").manual_seed(seed), SETTINGS.step_callback: after_step}


def loras(request: GenerationRequest) -> dict[str, float]:
    """Return the scale of each LoRA that the request chooses, by its folder: see lora.choose()."""
    known = {lora.name: lora for lora in SETTINGS.loras}
    return {
        known[each.name].folder: known[each.name].scale if each.scale is None else each.scale for each in request.loras
    }


def warnings(request: GenerationRequest, pipeline: Any) -> list[str]:
    """Return a sentence for each text of which the model reads only a part, with the rest of it."""
    tokenizer, count = getattr(pipeline, SETTINGS.prompt_tokens.tokenizer), SETTINGS.prompt_tokens.count
    if tokenizer is None:
        # Left out by load_kwargs. What is left is CLIP's, which puts a token at each end of a text.
        tokenizer, count = pipeline.tokenizer, pipeline.tokenizer.model_max_length - 2
    found = []
    for field in ("prompt", "negative_prompt"):
        text = getattr(request, field) or ""
        places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        if len(places) > count:
            rest = text[places[count][0] :]
            found.append(f"{field}: the model reads {count} tokens of it, so this rest had no effect: {rest}")
    return found

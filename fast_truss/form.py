"""What a visitor filled in, as a request. No gradio here."""

import base64
from pathlib import Path
from typing import Any

from fast_truss.errors import InvalidInput

MAX_SEED = 2**32 - 1
FORMATS = ("png", "jpeg", "webp")


def request_of(pipeline: dict[str, Any], form: dict[str, Any]) -> dict[str, Any]:
    """Return the request. Raises InvalidInput with a sentence for the visitor; the model checks the rest.

    pipeline: the block of config.yaml. form: the fields of the page by name; an API can send anything, null included.
    """
    limits = pipeline.get("limits", {})
    request = {
        "prompt": _text("prompt", form.get("prompt"), limits),
        "width": _whole("Width", form.get("width"), 1, 2**16),
        "height": _whole("Height", form.get("height"), 1, 2**16),
        "num_images": _whole("Pictures", form.get("num_images"), 1, limits.get("num_images", 1)),
        "num_inference_steps": _whole("Steps", form.get("steps"), 1, 10**6),
        "output_format": form.get("output_format"),
        "quality": _whole("Quality", form.get("quality"), 1, 100),
    }
    if not request["prompt"]:
        raise InvalidInput("Write a prompt first.")
    if request["output_format"] not in FORMATS:
        raise InvalidInput(f"The format is one of {', '.join(FORMATS)}.")
    if "guidance_scale" in form:
        request["guidance_scale"] = _number("Guidance", form["guidance_scale"])
    negative_prompt = _text("negative prompt", form.get("negative_prompt") or "", limits)
    if negative_prompt:
        request["negative_prompt"] = negative_prompt
    if form.get("loras"):
        request["loras"] = [{"name": name} for name in _loras(form["loras"], pipeline)]
    if form.get("image"):
        request["image"] = _pictures(form["image"], pipeline)
        if form.get("mask"):
            request["mask"] = _picture(form["mask"], limits)
        elif pipeline.get("image_to_image"):
            request["strength"] = _number("Strength", form.get("strength"))
        # The default may be too few for this strength: left out, the model follows it.
        if request["num_inference_steps"] == pipeline.get("defaults", {}).get("num_inference_steps"):
            del request["num_inference_steps"]
    elif form.get("mask"):
        raise InvalidInput("The mask belongs to a picture: choose that too.")
    seed = form.get("seed")
    if not form.get("random_seed") and str(seed or "").strip():
        request["seed"] = _seed(seed)
    return request


def _text(name: str, value: Any, limits: dict[str, Any]) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"The {name} is text: write some.")
    most = limits.get("prompt_characters", 2000)
    if len(value) > most:
        raise InvalidInput(f"The {name} has {len(value)} characters: use at most {most}.")
    return value.strip()


def _whole(name: str, value: Any, low: int, high: int) -> int:
    number = _number(name, value)
    if number != int(number) or not low <= number <= high:
        raise InvalidInput(f"{name}: use a whole number from {low} to {high}.")
    return int(number)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise InvalidInput(f"{name}: use a number.")
    return float(value)


def names_of_loras(pipeline: dict[str, Any]) -> list[str]:
    """Return those that a request can choose."""
    return [lora["name"] for lora in pipeline.get("loras", []) if not lora["fused"]]


def _loras(names: Any, pipeline: dict[str, Any]) -> list[str]:
    known = names_of_loras(pipeline)
    if not isinstance(names, list) or not all(name in known for name in names):
        raise InvalidInput(f"Styles: choose from {', '.join(known) or 'none'}.")
    return names


def _seed(value: Any) -> int:
    digits = str(value).strip()
    # The length first: Python refuses to read thousands of digits.
    if len(digits) > 10 or not digits.isascii() or not digits.isdecimal() or int(digits) > MAX_SEED:
        raise InvalidInput(f"The seed is a whole number from 0 to {MAX_SEED}, or empty.")
    return int(digits)


def _pictures(found: Any, pipeline: dict[str, Any]) -> Any:
    """Return the picture, or all of a gallery, which gives each with its caption."""
    limits, most = pipeline.get("limits", {}), (pipeline.get("reference_images") or {}).get("count", 1)
    if not isinstance(found, list):
        return _picture(found, limits)
    if len(found) > most:
        raise InvalidInput(f"There are {len(found)} pictures: use at most {most}.")
    files = [each[0] if isinstance(each, list | tuple) and each else each for each in found]
    pictures = [_picture(file, limits) for file in files]
    return pictures if len(pictures) > 1 else pictures[0]


def _picture(file: Any, limits: dict[str, Any]) -> str:
    most = limits.get("image_bytes", 10_000_000)
    try:
        content = Path(file).read_bytes()
    except (OSError, TypeError, ValueError):
        raise InvalidInput("The picture cannot be read: choose it again.") from None
    if len(content) > most:
        raise InvalidInput(f"The picture has {len(content) / 1e6:.1f} MB: use one of at most {most / 1e6:.1f} MB.")
    return base64.b64encode(content).decode()

"""One generation from the command line: check everything first, then ask, then write the files."""

import base64
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from fast_truss.api import Client, image_bytes
from fast_truss.console import console, show_phases, show_steps
from fast_truss.errors import InvalidInput

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
# Baseten takes 100 MB; base64 makes a file a third longer.
IMAGE_BYTES = 70_000_000


def check_output(output: Path) -> str:
    """Return the format that the suffix names. Raises InvalidInput if no file can be written there."""
    if output.suffix.lower() not in FORMATS:
        raise InvalidInput(f"--output is {str(output)!r}: use a name that ends in {', '.join(FORMATS)}.")
    try:
        output.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:  # a name that is too long, a folder that is a file
        raise InvalidInput(f"--output cannot be written ({error.strerror}): {str(output)[:200]!r}.") from None
    if not output.parent.is_dir():
        raise InvalidInput(f"--output is {str(output)!r}: its folder does not exist, make it first.")
    if output.is_dir():
        raise InvalidInput(f"--output is {str(output)!r}: this is a folder, name a file in it.")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise InvalidInput(f"--output is {str(output)!r}: it cannot be written, choose another place.")
    return FORMATS[output.suffix.lower()]


def check_outputs(output: Path, count: int) -> str:
    """The same for each of count images, as each has a name of its own. How many there may be, the model knows."""
    for file in files_of(output, min(max(count, 1), 100)):
        check_output(file)
    return FORMATS[output.suffix.lower()]


def read_image(file: Path, option: str = "--image") -> str:
    """Return a picture as base64. option: that names it. Raises InvalidInput."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{option} is {str(file)!r}: it cannot be read ({error.strerror}).") from None
    if len(content) > IMAGE_BYTES:
        raise InvalidInput(f"{option} has {len(content) / 1e6:.0f} MB: use at most {IMAGE_BYTES / 1e6:.0f} MB.")
    return base64.b64encode(content).decode()


def read_lora(text: str) -> dict[str, Any]:
    """Return what NAME or NAME:SCALE means. Raises InvalidInput; the model knows the names."""
    name, colon, scale = text.partition(":")
    try:
        number = float(scale) if colon else 1.0
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise InvalidInput(f"--lora is {text[:100]!r}: use NAME or NAME:SCALE, such as pixel-art:0.8.")
    return {"name": name, "scale": number} if colon else {"name": name}


def read_images(files: list[Path]) -> str | list[str] | None:
    """Return one picture as a text and several as a list, as the model takes them. Raises InvalidInput."""
    pictures = [read_image(file) for file in files]
    return pictures if len(pictures) > 1 else next(iter(pictures), None)


def files_of(output: Path, count: int) -> list[Path]:
    """Return one name for each image: out.png, or out-1.png, out-2.png and so on."""
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(1, count + 1)]


def generate(
    client: Client, request: dict[str, Any], output: Path, timeout: float, as_json: bool, stream: bool | None = None
) -> None:
    """Write the images, and show the cold start if there was one. stream: show each step. None: on a terminal."""
    started = time.monotonic()
    if console().is_terminal if stream is None else stream:
        answer = show_steps(client.events(**request, timeout=timeout), request.get("num_images", 1))
    else:
        with console().status("generating: a cold start may come first"):
            answer = client.generate(**request, timeout=timeout)
    seconds = time.monotonic() - started
    images = image_bytes(answer)
    files = files_of(output, len(images))
    for file, content in zip(files, images, strict=True):
        try:
            file.write_bytes(content)
        except OSError as error:
            raise InvalidInput(f"{file} cannot be written ({error.strerror}): choose another --output.") from None
    made = [{"file": str(file), "seed": entry.get("seed")} for file, entry in zip(files, answer["images"], strict=True)]
    if as_json:
        rest = {name: value for name, value in answer.items() if name != "images"}
        print(json.dumps({"images": made, **rest, "seconds": round(seconds, 3)}))
        return
    for each in made:
        print(f"{each['file']} (seed {each['seed']})")
    for warning in answer.get("warnings") or []:
        console().print(warning, style="yellow", markup=False)
    show_phases(answer)

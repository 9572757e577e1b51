"""Generate images: check the input, send the request, write the files."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss import Client, InvalidInput, fields, image_bytes
from fast_truss.console import console, show_steps
from fast_truss.errors import printable
from fast_truss.options import AsJson, Where, check_file

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def generate(
    where: Where,
    words: Annotated[list[str], typer.Argument(metavar="PROMPT [--FIELD VALUE]...", help=fields.HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png, .jpg or .webp file.")] = Path("image.png"),
    as_json: AsJson = False,
) -> None:
    """Generate images, waiting through a cold start. Other fields keep the defaults of config.yaml."""
    given, prompts = fields.given(words)
    if len(prompts) != 1:
        raise InvalidInput(f"There are {len(prompts)} prompts: use one, in quotes.")
    if "output_format" in given:
        raise InvalidInput("--output-format cannot be set: the suffix of --output decides.")
    check_file("--output", output, FORMATS)
    with where.client() as client:
        request = {"prompt": prompts[0], **fields.request_of(client, given, where.timeout)}
        ask(client, {**request, "output_format": FORMATS[output.suffix.lower()]}, output, where.timeout, as_json)


def ask(client: Client, request: dict[str, Any], output: Path, timeout: float, as_json: bool) -> None:
    """Send a request and write the files. A terminal shows each step."""
    count, started = request.get("num_images", 1), time.monotonic()
    count = count if isinstance(count, int) else 1
    for file in files_of(output, min(count, 100)):
        check_file("--output", file, FORMATS)
    if console().is_terminal:
        answer = show_steps(client.events(**request, timeout=timeout), count)
    else:
        answer = client.generate(**request, timeout=timeout)
    images = image_bytes(answer)
    answer["seconds"] = round(time.monotonic() - started, 3)
    made = []
    for file, content, entry in zip(files_of(output, len(images)), images, answer.pop("images"), strict=True):
        file.write_bytes(content)
        made.append({"file": str(file), "seed": entry.get("seed")})
    if as_json:
        return print(json.dumps({"images": made, **answer}))
    for each in made:
        print(printable(f"{each['file']} (seed {each['seed']})"))
    for warning in answer.get("warnings") or []:
        console().print(printable(str(warning)), style="yellow", markup=False)
    # Only a replica's first answer has them.
    if phases := (answer.get("timings") or {}).get("cold_start"):
        shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in phases.items())
        console().print(printable(f"cold start: {shown}"), markup=False)


def files_of(output: Path, count: int) -> list[Path]:
    """Return the file of each image: `out.png`, or `out-1.png` and so on."""
    return [output] if count == 1 else [output.with_stem(f"{output.stem}-{number + 1}") for number in range(count)]

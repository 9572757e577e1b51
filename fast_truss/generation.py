"""Generate images: check everything first, then ask, then write the files."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss import Client, InvalidInput, fields, image_bytes
from fast_truss.console import console, print_table, show_steps
from fast_truss.options import AsJson, Where, check_file

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def generate(
    where: Where,
    words: Annotated[list[str], typer.Argument(metavar="PROMPT [--FIELD VALUE]...", help=fields.HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png, .jpg or .webp file.")] = Path("image.png"),
    webhook: Annotated[
        str | None, typer.Option(help="Queue the request, and send the answer to this address: for long queues.")
    ] = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Show each step. Default: on a terminal only.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate images. Goes through a cold start. Fields that you leave out are as config.yaml says."""
    if stream and webhook is not None:
        raise InvalidInput("--stream and --webhook exclude each other: give one of them.")
    given, prompt = fields.given(words)
    if len(prompt) != 1:
        raise InvalidInput(f"There are {len(prompt)} prompts: give one, in quotes.")
    if "output_format" in given:
        raise InvalidInput("--output-format is not needed: the end of the name in --output says it.")
    check_file("--output", output, tuple(FORMATS))
    with where.client() as client:
        request = {"prompt": prompt[0], **fields.request_of(client, given, where.timeout)}
        request["output_format"] = FORMATS[output.suffix.lower()]
        for file in files_of(output, min(_count(request), 100)):
            check_file("--output", file, tuple(FORMATS))
        if webhook is None:
            return ask(client, request, output, where.timeout, as_json, stream)
        request_id = client.submit(webhook=webhook, timeout=where.ask, **request)
    print(json.dumps({"request_id": request_id}) if as_json else f"{request_id} is queued. See `status --request`.")


def files_of(output: Path, count: int) -> list[Path]:
    """Return the file of each image: `out.png`, or `out-1.png` and so on."""
    if count == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{number + 1}") for number in range(count)]


def _count(request: dict[str, Any]) -> int:
    count = request.get("num_images", 1)
    return max(count, 1) if isinstance(count, int) else 1


def ask(
    client: Client, request: dict[str, Any], output: Path, timeout: float, as_json: bool, stream: bool | None
) -> None:
    """Send a request, and write the files. stream: show each step; None: on a terminal."""
    started = time.monotonic()
    if console().is_terminal if stream is None else stream:
        answer = show_steps(client.events(**request, timeout=timeout), _count(request))
    else:
        with console().status("generating: a cold start may come first"):
            answer = client.generate(**request, timeout=timeout)
    seconds = time.monotonic() - started
    images = image_bytes(answer)
    made = []
    for file, content, entry in zip(files_of(output, len(images)), images, answer["images"], strict=True):
        try:
            file.write_bytes(content)
        except OSError as error:
            raise InvalidInput(f"{file} cannot be written ({error.strerror}): choose another --output.") from None
        made.append({"file": str(file), "seed": entry.get("seed")})
    if as_json:
        rest = {name: value for name, value in answer.items() if name != "images"}
        return print(json.dumps({"images": made, **rest, "seconds": round(seconds, 3)}))
    for each in made:
        print(f"{each['file']} (seed {each['seed']})")
    for warning in answer.get("warnings") or []:
        console().print(warning, style="yellow", markup=False)
    # Only the first answer of a replica holds them.
    if phases := (answer.get("timings") or {}).get("cold_start"):
        rows = [[name, f"{seconds:.2f}"] for name, seconds in phases.items()]
        print_table("", ("cold start", "seconds"), rows, console())

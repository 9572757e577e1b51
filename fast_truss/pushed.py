"""What `truss push --output json` wrote: the one reader, and the end of a push."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss import Client, InvalidInput, Target, doctor
from fast_truss.console import tell_pause
from fast_truss.options import positive


def read(file: Path) -> dict[str, Any]:
    """Return the JSON object in file, whatever is around it. Raises InvalidInput."""
    try:
        text = file.read_text("utf-8", errors="replace")
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read ({error.strerror}): run `make push`.") from None
    for start in re.finditer("{", text):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        if {"model_id", "model_version_id"} <= found.keys():
            return dict(found)
    raise InvalidInput(f"{file} is not what `truss push --output json` writes: run `make push`.")


def pushed(
    file: Annotated[Path, typer.Argument(help="What `truss push --output json` wrote.")],
    only: Annotated[str | None, typer.Option("--print", help="Print this value, such as model_id, and stop.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.", callback=positive)] = 1800.0,
) -> None:
    """End a push: the status of what was pushed, its first image in image.png, and its cold start."""
    record = read(file)
    if only is not None:
        if only not in record:
            raise InvalidInput(f"--print is {only!r}: use one of {', '.join(record)}.")
        return print(record[only])
    target = Target(str(record["model_id"]), "deployment", str(record["model_version_id"]))
    if not os.environ.get("BASETEN_API_KEY"):  # Truss may have read its own from ~/.trussrc
        command = " ".join(["fast-truss doctor", *target.arguments()])
        return print(f"Pushed. To see its first image and cold start, put a key into BASETEN_API_KEY: {command}")
    checks = doctor.after_the_push(Client(target, on_pause=tell_pause), timeout, True, Path("image.png"))
    if not doctor.run(checks, as_json=False):
        sys.exit(1)

"""What `truss push --output json` wrote: the one reader, and the end of a push."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fast_truss import Client, InvalidInput, Target, doctor
from fast_truss.console import tell_pause
from fast_truss.options import positive


def target_of(file: Path) -> Target:
    """Return the deployment that file names, whatever is said before and after it. Raises InvalidInput."""
    try:
        text = file.read_text("utf-8", errors="replace")
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read ({error.strerror}): run `make push`.") from None
    at = text.find("{")
    while at >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(text, at)
            return Target(str(found["model_id"]), "deployment", str(found["model_version_id"]))
        except (ValueError, KeyError, RecursionError):
            at = text.find("{", at + 1)
    raise InvalidInput(f"{file} is not what `truss push --output json` writes: run `make push`.")


def pushed(
    file: Annotated[Path, typer.Argument(help="What `truss push --output json` wrote.")],
    only: Annotated[
        Literal["model_id", "deployment_id"] | None, typer.Option("--print", help="Print this, and do nothing else.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.", callback=positive)] = 1800.0,
) -> None:
    """End a push: the status of what was pushed, its first image in image.png, and its cold start."""
    target = target_of(file)
    if only:
        return print(target.model_id if only == "model_id" else target.name)
    if not os.environ.get("BASETEN_API_KEY"):  # Truss may have read its own from ~/.trussrc
        command = " ".join(["fast-truss doctor", *target.arguments()])
        return print(f"Pushed. To see its first image and cold start, put a key into BASETEN_API_KEY: {command}")
    checks = doctor.after_the_push(Client(target, on_pause=tell_pause), timeout, True, Path("image.png"))
    if not doctor.run(checks, as_json=False):
        sys.exit(1)

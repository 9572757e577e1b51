"""Refuse bad answers, all at once, one sentence each. No file has been written yet."""

import contextlib
import json
import re
import sys
from pathlib import Path

# The answers enter as data, never as code. This file is valid Python before it is rendered.
CONTEXT = r"""
<< cookiecutter | tojson >>
"""

MODEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def problems(answers: dict) -> list[str]:
    """Return one sentence for each bad answer: what the field is, and what would be right."""
    found = []
    name = answers["model_name"]
    if not MODEL_NAME.fullmatch(name):
        found.append(
            f"model_name is {shown(name)}: use 1 to 64 letters, digits, '.', '_' and '-', "
            "with a letter or digit at both ends."
        )
    presets = list(answers["_presets"])
    if answers["preset"] not in presets:
        found.append(f"preset is {shown(answers['preset'])}: use one of {', '.join(presets)}.")
    accelerators = answers["_accelerators"]
    if answers["accelerator"] not in accelerators:
        found.append(f"accelerator is {shown(answers['accelerator'])}: use one of {', '.join(accelerators)}.")
    return found


def remove_nested_folders(name: str) -> None:
    """Remove the folders that cookiecutter made for a name such as a/b: itself it removes only b."""
    made = [part for part in Path(name).parts if part not in ("/", "..")]
    if len(made) < 2:
        return
    folder = Path.cwd()
    for _ in made:
        with contextlib.suppress(OSError):  # not empty: somebody else's
            folder.rmdir()
        folder = folder.parent


def shown(answer: str) -> str:
    text = ascii(answer)
    return text if len(text) <= 60 else text[:57] + "..."


if __name__ == "__main__":
    context = json.loads(CONTEXT)
    found = problems(context)
    if found:
        remove_nested_folders(context["model_name"])
    sys.exit("\n".join(found) or None)

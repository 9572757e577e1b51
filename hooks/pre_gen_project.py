"""Refuse bad answers, all at once, one sentence each. No file has been written yet."""

import contextlib
import json
import os
import re
import sys
from pathlib import Path

# The answers enter as data, never as code. This file is valid Python before it is rendered.
CONTEXT = r"""
<< cookiecutter | tojson >>
"""

HF_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
COMMIT = re.compile(r"[0-9a-f]{40}")
PROMPTED = ("model_name", "preset", "accelerator", "weights", "hf_repo_id", "hf_revision", "_hf_variant")
VARIANTS = ("preset", "", "fp16", "fp32", "bf16")
MODEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def problems(answers: dict) -> list[str]:
    """Return one sentence for each bad answer: what the field is, and what would be right."""
    no_text = [name for name in PROMPTED if not isinstance(answers[name], str)]
    if no_text:
        return [f"{name} is {shown(answers[name])}: use text, in quotes." for name in no_text]
    found = []
    name = answers["model_name"]
    if not MODEL_NAME.fullmatch(name):
        found.append(
            f"model_name is {shown(name)}: use 1 to 64 letters, digits, '.', '_' and '-', "
            "with a letter or digit at both ends."
        )
    presets = answers["_presets"]
    if answers["preset"] not in presets:
        found.append(f"preset is {shown(answers['preset'])}: use one of {', '.join(presets)}.")
    memory = {"preset": None, **answers["_accelerators"]}
    if answers["accelerator"] not in memory:
        found.append(f"accelerator is {shown(answers['accelerator'])}: use one of {', '.join(memory)}.")
    if answers["weights"] not in ("model_cache", "weights"):
        found.append(f"weights is {shown(answers['weights'])}: use model_cache or weights.")
    found += fine_tune_problems(answers)
    preset = presets.get(answers["preset"])
    if preset and memory.get(answers["accelerator"]):
        found += accelerator_problems(answers["accelerator"], memory, answers["preset"], preset)
    return found


def accelerator_problems(accelerator: str, memory: dict, name: str, preset: dict) -> list[str]:
    """Return a sentence if the weights and activations (GB, an estimate) do not fit."""
    needed = preset["weights_gb"] + preset["activations_gb"]
    if memory[accelerator] >= needed:
        return []
    return [
        f"accelerator is {accelerator!r}: it has {memory[accelerator]} GB of memory, "
        f"and {name} needs about {needed:.0f}: use {preset['accelerator']} or a larger one."
    ]


def fine_tune_problems(answers: dict) -> list[str]:
    """Return a sentence for each bad answer about the weights of a fine-tune."""
    repo_id, revision, variant = answers["hf_repo_id"], answers["hf_revision"], answers["_hf_variant"]
    preset = answers["_presets"].get(answers["preset"], {"repos": {}, "variant": None})
    found = []
    repo_is_good = not repo_id or (HF_REPO_ID.fullmatch(repo_id) and "--" not in repo_id and ".." not in repo_id)
    if not repo_is_good:
        found.append(f"hf_repo_id is {shown(repo_id)}: use owner/name, as on Hugging Face, or leave it empty.")
    if "unet" in preset["repos"] and repo_id:
        found.append(
            f"hf_repo_id is {shown(repo_id)}: {answers['preset']} brings its own UNet, so it cannot serve a fine-tune, "
            "use sdxl for that."
        )
    if not COMMIT.fullmatch(revision) and (revision or repo_id):
        shown_id = repo_id if repo_id and repo_is_good else "owner/name"
        found.append(
            f"hf_revision is {shown(revision)}: use a commit, 40 hex digits in lower case, "
            f"because a branch or tag moves; `git ls-remote https://huggingface.co/{shown_id}` prints them."
        )
    if variant not in VARIANTS:
        found.append(f"_hf_variant is {shown(variant)}: use preset, fp16, bf16, fp32 or nothing for plain file names.")
    elif variant != "preset" and not preset["variant"]:
        found.append(f"_hf_variant is {shown(variant)}: {shown(answers['preset'])} has no variants, leave it out.")
    return found


def remove_nested_folders(name: str, output: str | None) -> None:
    """Remove the folders that cookiecutter made for a name such as a/b or a/../b: itself it removes only b.

    output: the folder that the project was to be in. It stays, and so does what is above it.
    """
    path = Path(name)
    if output is None:
        # cruft does not say where it generates, and only a plain name tells.
        if path.is_absolute() or ".." in path.parts:
            return
        output = os.path.normpath(Path.cwd().joinpath(*[".."] * len(path.parts)))
    folders = [Path(os.path.normpath(Path(output, *path.parts[:count]))) for count in range(len(path.parts), 0, -1)]
    made = [folder for folder in folders if not Path(output).is_relative_to(folder)]
    if len(made) < 2:
        return
    for folder in made:
        with contextlib.suppress(OSError):  # not empty: somebody else's
            folder.rmdir()


def shown(answer: object) -> str:
    """Return the answer for a sentence: one line of ASCII, at most 60 characters."""
    text = ascii(answer)
    return text if len(text) <= 60 else text[:57] + "..."


if __name__ == "__main__":
    context = json.loads(CONTEXT)
    found = problems(context)
    if found:
        remove_nested_folders(context["model_name"], context.get("_output_dir"))
    sys.exit("\n".join(found) or None)

"""Refuse bad answers, all at once, with one sentence each, before any file is written.

This does not guard against code: cookiecutter renders each answer as a Jinja template before any hook runs, and a
template can run Python. Never generate a project from answers that others wrote.
"""

import contextlib
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

# JSON keeps quotes and backslashes in answers, and leaves this file valid Python before it is rendered.
CONTEXT = r"""
<< cookiecutter | tojson >>
"""

# Written by `python -m catalog`, one preset per line: hooks cannot read the catalog.
FACTS_JSON = r"""
{"presets": {
"sdxl": {"needs_gb": 15.86, "bfloat16": false, "variants": true},
"sdxl-turbo": {"needs_gb": 15.4, "bfloat16": false, "variants": true},
"sd-turbo": {"needs_gb": 7.7, "bfloat16": false, "variants": true},
"sd15": {"needs_gb": 7.25, "bfloat16": false, "variants": true},
"sd15-lcm": {"needs_gb": 7.25, "bfloat16": false, "variants": true},
"sd21": {"needs_gb": 7.7, "bfloat16": false, "variants": true},
"sdxl-lightning": {"needs_gb": 15.85, "bfloat16": false, "variants": true, "own_components": ["vae", "unet"], "instead": "sdxl"},
"sd3-medium": {"needs_gb": 23.47, "bfloat16": false, "variants": false},
"sd3.5-medium": {"needs_gb": 23.48, "bfloat16": true, "variants": false},
"sd3.5-large": {"needs_gb": 35.75, "bfloat16": true, "variants": false},
"sd3.5-large-turbo": {"needs_gb": 35.72, "bfloat16": true, "variants": false},
"flux-schnell": {"needs_gb": 42.64, "bfloat16": true, "variants": false},
"flux-schnell-8bit": {"needs_gb": 31.5, "bfloat16": true, "variants": false, "own_components": ["transformer"], "instead": "flux-schnell"},
"flux-dev": {"needs_gb": 42.67, "bfloat16": true, "variants": false},
"lcm-dreamshaper": {"needs_gb": 7.25, "bfloat16": false, "variants": false},
"ssd-1b": {"needs_gb": 13.39, "bfloat16": false, "variants": true},
"pixart-sigma": {"needs_gb": 18.08, "bfloat16": false, "variants": false},
"sana-sprint": {"needs_gb": 16.15, "bfloat16": true, "variants": false},
"z-image-turbo": {"needs_gb": 29.46, "bfloat16": true, "variants": false},
"z-image-turbo-8bit": {"needs_gb": 23.41, "bfloat16": true, "variants": false, "own_components": ["transformer"], "instead": "z-image-turbo"},
"z-image": {"needs_gb": 29.48, "bfloat16": true, "variants": false},
"ernie-image-turbo": {"needs_gb": 31.56, "bfloat16": true, "variants": false},
"qwen-image-2512": {"needs_gb": 77.87, "bfloat16": true, "variants": false},
"flux2-klein-4b": {"needs_gb": 23.57, "bfloat16": true, "variants": false},
"flux2-klein-4b-8bit": {"needs_gb": 21.56, "bfloat16": true, "variants": false, "own_components": ["transformer"], "instead": "flux2-klein-4b"},
"chroma1-hd": {"needs_gb": 36.42, "bfloat16": true, "variants": false},
"flux2-klein-9b": {"needs_gb": 45.82, "bfloat16": true, "variants": false},
"flux-kontext-dev": {"needs_gb": 42.66, "bfloat16": true, "variants": false},
"qwen-image-edit-2511": {"needs_gb": 77.88, "bfloat16": true, "variants": false}
},
"accelerators": {
"T4": {"memory_gb": 16, "bfloat16": false, "usable_gb": 15.6},
"L4": {"memory_gb": 24, "bfloat16": true, "usable_gb": 23.5},
"A10G": {"memory_gb": 24, "bfloat16": true, "usable_gb": 23.6},
"V100": {"memory_gb": 16, "bfloat16": true, "unusable": "torch 2.13.0 is built for CUDA 13, which has no kernels for it", "usable_gb": 16.9},
"A100": {"memory_gb": 80, "bfloat16": true, "usable_gb": 84.9},
"A100_40GB": {"memory_gb": 40, "bfloat16": true, "usable_gb": 42.2},
"H100": {"memory_gb": 80, "bfloat16": true, "usable_gb": 84.9},
"H100_40GB": {"memory_gb": 40, "bfloat16": true, "usable_gb": 42.1},
"H200": {"memory_gb": 141, "bfloat16": true, "usable_gb": 150.1},
"B200": {"memory_gb": 180, "bfloat16": true, "usable_gb": 191.5},
"B300": {"memory_gb": 288, "bfloat16": true, "usable_gb": 287.4},
"GB300": {"memory_gb": 288, "bfloat16": true, "usable_gb": 287.4},
"L40S": {"memory_gb": 48, "bfloat16": true, "usable_gb": 47.6},
"RTX_PRO_6000": {"memory_gb": 96, "bfloat16": true, "usable_gb": 101.9}
}}
"""  # noqa: E501

PRESETS: dict[str, Any] = json.loads(FACTS_JSON)["presets"]
ACCELERATORS: dict[str, Any] = json.loads(FACTS_JSON)["accelerators"]
HF_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
COMMIT = re.compile(r"[0-9a-f]{40}")
PROMPTED = ("model_name", "preset", "accelerator", "weights", "hf_repo_id", "hf_revision", "_hf_variant")
VARIANTS = ("preset", "plain", "fp16", "bf16", "fp32")
MODEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def problems(answers: dict[str, Any]) -> list[str]:
    """Return one sentence for each bad answer, with the value and what to use instead."""
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
    if answers["preset"] not in PRESETS:
        found.append(f"preset is {shown(answers['preset'])}: use one of {', '.join(PRESETS)}.")
    found += accelerator_problems(answers)
    if answers["weights"] not in ("model_cache", "weights"):
        found.append(f"weights is {shown(answers['weights'])}: use model_cache or weights.")
    return found + fine_tune_problems(answers)


def accelerator_problems(answers: dict[str, Any]) -> list[str]:
    """Return a sentence if the accelerator is unknown, unusable with torch, or too small for the preset."""
    name, preset = answers["accelerator"], PRESETS.get(answers["preset"])
    usable = sorted(
        (other for other, facts in ACCELERATORS.items() if "unusable" not in facts),
        key=lambda other: ACCELERATORS[other]["memory_gb"],
    )
    if name == "preset":
        return []
    if name not in ACCELERATORS:
        return [f"accelerator is {shown(name)}: use one of preset, {', '.join(usable)}."]
    # An unknown preset has no requirements.
    needed, bfloat16 = (preset["needs_gb"], preset["bfloat16"]) if preset else (0, False)
    lacks_bfloat16 = [other for other, facts in ACCELERATORS.items() if bfloat16 and not facts["bfloat16"]]
    fits = [o for o in usable if ACCELERATORS[o]["usable_gb"] >= needed and o not in lacks_bfloat16]
    chosen, fitting = ACCELERATORS[name], ", ".join(fits)
    if "unusable" in chosen:
        return [f"accelerator is {name!r}: {chosen['unusable']}: use one of {fitting}."]
    if name in lacks_bfloat16:
        return [f"accelerator is {name!r}: {answers['preset']} runs in bfloat16, which it lacks: use one of {fitting}."]
    if chosen["usable_gb"] < needed:
        return [
            f"accelerator is {name!r}: it has {chosen['usable_gb']} GB for a model, and {answers['preset']} needs "
            f"about {needed:.1f}: use one of {fitting}."
        ]
    return []


def fine_tune_problems(answers: dict[str, Any]) -> list[str]:
    """Return a sentence for each bad answer about a fine-tune."""
    repo_id, revision, variant = answers["hf_repo_id"], answers["hf_revision"], answers["_hf_variant"]
    preset = PRESETS.get(answers["preset"], {"variants": False})
    found = []
    repo_is_good = not repo_id or (HF_REPO_ID.fullmatch(repo_id) and "--" not in repo_id and ".." not in repo_id)
    if not repo_is_good:
        found.append(f"hf_repo_id is {shown(repo_id)}: use owner/name, as on Hugging Face, or leave it empty.")
    # Components that a fine-tune cannot replace.
    kept = preset.get("own_components")
    if kept and repo_id:
        found.append(
            f"hf_repo_id is {shown(repo_id)}: {answers['preset']} has its own {' and '.join(kept)} and cannot serve "
            f"a fine-tune: use {preset['instead']} for that."
        )
    if not COMMIT.fullmatch(revision) and (revision or repo_id):
        shown_id = repo_id if repo_id and repo_is_good else "owner/name"
        found.append(
            f"hf_revision is {shown(revision)}: use a commit, 40 hex digits in lower case, "
            f"because a branch or tag moves; `git ls-remote https://huggingface.co/{shown_id}` prints them."
        )
    if variant not in VARIANTS:
        found.append(
            f"_hf_variant is {shown(variant)}: use preset, fp16, bf16 or fp32, as the files are named, or plain "
            "for names such as unet/diffusion_pytorch_model.safetensors."
        )
    elif variant not in ("preset", "plain") and not preset["variants"]:
        found.append(
            f"_hf_variant is {shown(variant)}: {shown(answers['preset'])} has no variants, use preset or plain."
        )
    return found


def remove_nested_folders(name: str, output: str | None) -> None:
    """Remove the folders that cookiecutter made for a name such as a/b or a/../b, of which it removes only b itself.

    output: the output folder, which stays, with its parents.
    """
    path = Path(name)
    if output is None:
        # cruft does not pass its output folder, which only a plain name reveals.
        if path.is_absolute() or ".." in path.parts:
            return
        output = os.path.normpath(Path.cwd().joinpath(*[".."] * len(path.parts)))
    folders = [Path(os.path.normpath(Path(output, *path.parts[:count]))) for count in range(len(path.parts), 0, -1)]
    made = [folder for folder in folders if not Path(output).is_relative_to(folder)]
    if len(made) < 2:
        return
    for folder in made:
        with contextlib.suppress(OSError):  # not empty, so not ours
            folder.rmdir()


def same_again(answers: dict[str, Any], found: list[str]) -> str:
    """Return the command with the good answers kept and the bad ones left to fill in."""
    bad = list(dict.fromkeys(sentence.split()[0] for sentence in found))
    said = [f"{name}={answers[name]}" for name in PROMPTED if name not in bad and answers[name]]
    said += [f"{name}=..." for name in bad]
    return shlex.join(["cookiecutter", answers.get("_template", "gh:org/fast-truss"), "--no-input", *said])


def shown(answer: object) -> str:
    """Format an answer for a sentence: one line of ASCII, at most 60 characters."""
    text = ascii(answer)
    return text if len(text) <= 60 else text[:57] + "..."


if __name__ == "__main__":
    context = json.loads(CONTEXT)
    found = problems(context)
    if found:
        remove_nested_folders(context["model_name"], context.get("_output_dir"))
        found.append(f"To keep the other answers: {same_again(context, found)}")
    sys.exit("\n".join(found) or None)

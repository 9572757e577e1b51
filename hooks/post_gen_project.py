"""Make a relative folder that the tools are installed from absolute, and print what was made and the next steps."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

CONTEXT = r"""
<< cookiecutter | tojson >>
"""

ANSWERS = ("model_name", "preset", "accelerator", "weights", "hf_repo_id", "hf_revision")


def absolute_source(makefile: str, shell_folder: str) -> str:
    """Return the text of the Makefile, with the folder that FAST_TRUSS names seen from the shell's folder.

    cookiecutter gives a folder as it was typed, and runs hooks elsewhere.
    """

    def absolute(found: re.Match[str]) -> str:
        folder = Path(shell_folder, found[2]).resolve()
        return found[1] + (str(folder) if (folder / "cookiecutter.json").is_file() else found[2])

    return re.sub(r"(?m)^(FAST_TRUSS \?= )((?![\w+-]+://|/).*)$", absolute, makefile)


def farewell(answers: dict[str, Any]) -> str:
    """Return what a user needs to know right after the project was made."""
    preset = answers["_presets"][answers["preset"]]
    name, fine_tune = answers["model_name"], answers["hf_repo_id"]
    repo = preset["repos"]["pipeline"]
    accelerator = preset["accelerator"] if answers["accelerator"] == "preset" else answers["accelerator"]
    commit = answers["hf_revision"] or repo["revision"]
    licence = f"{preset['license']}. {preset['license_notice']}"
    size = f"{preset['download_gb']} GB"
    if fine_tune:
        licence = f"read it at https://huggingface.co/{fine_tune}. Of {preset['title']} itself: {licence}"
        size = f"how large they are was not looked up (those of {preset['title']}: {size})"
    return f"""
{name} is ready: {preset["title"]} on {accelerator} ({answers["_accelerators"][accelerator]} GB).

Weights: {fine_tune or repo["repo_id"]}, {size}
Commit: {commit}, brought by {answers["weights"]}
Licence of the weights: {licence}
{token_note(fine_tune or repo["repo_id"]) if preset["gated"] or fine_tune else ""}\
{variant_note(answers, preset) if fine_tune and preset["variant"] else ""}
The same project again:
  {command(answers)}

Next:
  cd {name}
  make test     the tests of the real server, without GPU, Docker or weights
  make serve    the local Truss server
  make push     to Baseten
The first of them installs about 5 GB on Linux. README.md there tells the rest.
"""


def token_note(repo_id: str) -> str:
    return f"""
The weights need a token, unless they are public. Ask for access at https://huggingface.co/{repo_id},
then put a Hugging Face token into the secret hf_access_token on Baseten, under Settings, Secrets.
"""


def variant_note(answers: dict[str, Any], preset: dict[str, Any]) -> str:
    """Return how to get the other file names: a fine-tune often has no copy in half precision beside the plain one."""
    variant = preset["variant"] if answers["_hf_variant"] == "preset" else answers["_hf_variant"]
    other, wanted = ("", "plain names such as model.safetensors") if variant else ("fp16", "names with .fp16")
    return f"""
Its files are expected as {f"model.{variant}.safetensors" if variant else "model.safetensors"}. If they have {wanted}:
  {command({**answers, "_hf_variant": other})} --overwrite-if-exists
"""


def command(answers: dict[str, Any]) -> str:
    """Return the command that gives the same project without a question."""
    said = [f"{name}={answers[name]}" for name in ANSWERS if answers[name]]
    if answers["_hf_variant"] != "preset":
        said.append(f"_hf_variant={answers['_hf_variant']}")
    checkout = ["--checkout", answers["_checkout"]] if answers.get("_checkout") else []
    return shlex.join(["cookiecutter", answers.get("_template", "gh:org/fast-truss"), *checkout, "--no-input", *said])


if __name__ == "__main__":
    file = Path("Makefile")
    file.write_text(absolute_source(file.read_text("utf-8"), os.environ.get("PWD", "")), "utf-8")
    print(farewell(json.loads(CONTEXT)))

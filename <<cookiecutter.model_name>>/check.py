"""List the files that `truss push` would push, and refuse what would fail: run by `make check` and `make push`."""

import contextlib
import importlib.util
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import local_server
from pipeline_settings import SettingsError

# The files that the server reads. Truss pushes the rest of the folder too, but the image does not have it.
NEEDED = re.compile(r"config\.yaml|(model|data|packages)/.*")
# Patterns of keys and tokens.
SECRETS = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}",
    "a Baseten API key": rb"\b[A-Za-z0-9]{8}\.[A-Za-z0-9]{32}\b",
    "an AWS key": rb"\b(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": rb"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})",
}
MEMORY = ("fixed", "per_megapixel", "per_lora")
SAFETY_GB = 0.7  # Stable Diffusion's checker, 304 million numbers in 16 bits, and its work
# GB (1e9 bytes) that torch can have of each that it has kernels for: by price, where Baseten lists one.
GPU_GB = {"T4": 15.6, "L4": 23.5, "A10G": 23.6, "H100_40GB": 42.1, "A100_40GB": 42.2, "L40S": 47.6, "A100": 84.9}
GPU_GB |= {"RTX_PRO_6000": 101.9, "H100": 84.9, "H200": 150.1, "B200": 191.5, "B300": 287.4, "GB300": 287.4}


def commit_problems() -> list[str]:
    """Return one sentence for each repository that is not pinned to a commit."""
    return [
        f"{repo['repo_id']} is at {repo['revision']!r}: use a commit, 40 hex digits, because a branch or tag moves."
        for repo in local_server.cached_repos()
        if not re.fullmatch("[0-9a-f]{40}", str(repo["revision"]))
    ]


def gpu_problems(config: dict[str, Any]) -> list[str]:
    """Print what the largest request needs. Return a sentence if the GPU does not hold it, or torch cannot use that."""
    resources, metadata = config.get("resources") or {}, config["model_metadata"]
    key = "instance_type" if resources.get("instance_type") else "accelerator"
    # As L4:2, two of them, or the instance types L4:4x16, T4x4x16 and H100MIG.
    name = re.split("[:x]", str(resources.get(key) or "").replace("H100MIG", "H100_40GB").replace("-", "_"))[0]
    memory, pipeline = metadata.get("gpu_memory_gb"), metadata["pipeline"]
    if not isinstance(memory, dict) or not all(type(memory.get(each)) in (int, float) for each in MEMORY):
        return [f"model_metadata.gpu_memory_gb is {memory!r}: use the numbers {', '.join(MEMORY)}, in GB."]
    limits = pipeline["limits"]
    loras = min(sum(not lora["fused"] for lora in pipeline["loras"]), limits["loras_in_memory"])
    pixels = min(limits["max_pixels"], limits["max_size"] ** 2)
    held = memory["fixed"] + loras * memory["per_lora"] + SAFETY_GB * bool(pipeline["safety"])
    needed = held + memory["per_megapixel"] * pixels / 1e6
    usable = {gpu: gb for gpu, gb in GPU_GB.items() if gpu != "T4" or pipeline["dtype"] != "bfloat16"}
    fitting = ", ".join(gpu for gpu, gb in usable.items() if gb >= needed)
    if name not in usable:
        why = "it has no bfloat16" if name in GPU_GB else "torch has no kernels for it"
        return [f"resources.{key} is {name!r}: {why}, use one of {fitting}."]
    what = f"{pixels} pixels (limits.max_pixels)" + f" and {loras} LoRA{'s' * (loras > 1)} to choose from" * bool(loras)
    what += " and the safety checker" * bool(pipeline["safety"])

    def fits(gpu: str) -> str:
        most = int((GPU_GB[gpu] - held) / (memory["per_megapixel"] or 1) * 1e6)
        return f"limits.max_pixels: {most}" if most > 0 else "no size at all"

    if GPU_GB[name] < needed:
        return [
            f"resources.{key} is {name!r}: a model can have {GPU_GB[name]} GB of it, and an image of {what} needs "
            f"{needed:.1f}: use one of {fitting}, or what it holds: {fits(name)}."
        ]
    print(f"An image of {what} needs {needed:.1f} of the {GPU_GB[name]} GB of the {name} (predicted).")
    smaller = [gpu for gpu in [*usable][: [*usable].index(name)] if GPU_GB[gpu] < GPU_GB[name]]
    for gpu in smaller[-1:]:
        print(f"The next smaller, {gpu}, has {GPU_GB[gpu]} GB: {fits(gpu) if GPU_GB[gpu] < needed else 'enough'}.")
    return []


def secret_problems(files: list[Path]) -> list[str]:
    """Return one sentence for each key or token in files, which are relative to the project."""
    found = []
    for file in files:
        with (local_server.PROJECT / file).open("rb") as stream:
            content = stream.read(2**24)  # keys are in small files
        found += [
            f"{file} contains {what}: remove it, or add the file to .truss_ignore."
            for what, pattern in SECRETS.items()
            if re.search(pattern, content)
        ]
    return found


def trial_problems(config: dict[str, Any]) -> list[str]:
    """Return the problems of config.yaml on tiny weights: see trial.py."""
    if importlib.util.find_spec("torch") is None:
        print("Skipped the trial of config.yaml on tiny weights: torch is missing. `make check` installs it.")
        return []
    import trial

    print("Trying config.yaml on tiny weights ...", flush=True)
    os.environ.update(config.get("environment_variables") or {})
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the libraries' progress bars and warnings
            return trial.problems(config["model_metadata"]["pipeline"])
    except ValueError as error:
        print(f"Skipped the trial of config.yaml on tiny weights. {error}")
        return []


def main() -> None:
    """Print the list of files. Exits with 1 and the problems if there are any."""
    try:
        config = local_server.read_config()
        local_server.check_with_truss(config)
    except SettingsError as error:
        sys.exit(str(error))
    files = local_server.pushed_files()
    if broken := [file for file in files if not (local_server.PROJECT / file).exists()]:
        sys.exit("\n".join(f"{file} is a broken link: remove it, or add it to .truss_ignore." for file in broken))
    print("`truss push` pushes, in bytes:", flush=True)
    for file in files:
        note = "" if NEEDED.fullmatch(file.as_posix()) else "   the server does not need it: add it to .truss_ignore"
        print(f"  {(local_server.PROJECT / file).stat().st_size:>12,}  {file}{note}", flush=True)
    problems = commit_problems() + gpu_problems(config) + secret_problems(files)
    # The trial takes seconds, so it comes last.
    if problems := problems or trial_problems(config):
        sys.exit("\n".join(problems))
    print("No problems found.")


if __name__ == "__main__":
    main()

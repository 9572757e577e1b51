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
import trial

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
SEARCHED_BYTES = 2**24  # per file: keys are in small files
COMMIT = re.compile(r"[0-9a-f]{40}")
# In GB, for the accelerators that Truss has and torch has kernels for.
GPU_MEMORY_GB = {"T4": 16, "L4": 24, "A10G": 24, "A100": 80, "A100_40GB": 40, "H100": 80, "H100_40GB": 40, "H200": 141}
GPU_MEMORY_GB |= {"B200": 180, "B300": 288, "GB300": 288, "L40S": 48, "RTX_PRO_6000": 96}


def commit_problems() -> list[str]:
    """Return one sentence for each repository that is not pinned to a commit."""
    return [
        f"{repo['repo_id']} is at {repo['revision']!r}: use a commit, 40 hex digits, because a branch or tag moves."
        for repo in local_server.cached_repos()
        if not COMMIT.fullmatch(str(repo["revision"]))
    ]


def accelerator_problems(config: dict[str, Any]) -> list[str]:
    """Return a sentence if the model does not fit on the accelerator (an estimate), or torch cannot use it."""
    resources = config.get("resources") or {}
    key = "instance_type" if resources.get("instance_type") else "accelerator"
    # Such as L4:2 (two of them), or the instance type L4:4x16.
    name = str(resources.get(key) or "").split(":")[0]
    needed = config["model_metadata"].get("gpu_memory_gb", 0)
    if isinstance(needed, bool) or not isinstance(needed, int | float):
        return [f"model_metadata.gpu_memory_gb is {needed!r}: use a number of GB, the memory that the model needs."]
    fitting = ", ".join(name for name, gb in sorted(GPU_MEMORY_GB.items(), key=lambda item: item[1]) if gb >= needed)
    if name not in GPU_MEMORY_GB:
        return [f"resources.{key} is {name!r}: torch has no kernels for it, use one of {fitting}."]
    if GPU_MEMORY_GB[name] >= needed:
        return []
    return [
        f"resources.{key} is {name!r}: it has {GPU_MEMORY_GB[name]} GB, but the model needs about {needed}: "
        f"use one of {fitting}."
    ]


def link_problems(files: list[Path]) -> list[str]:
    """Return one sentence for each file that Truss could not read."""
    return [
        f"{file} is a broken link: remove it, or add it to .truss_ignore."
        for file in files
        if not (local_server.PROJECT / file).exists()
    ]


def secret_problems(files: list[Path]) -> list[str]:
    """Return one sentence for each key or token in files, which are relative to the project."""
    found = []
    for file in files:
        with (local_server.PROJECT / file).open("rb") as stream:
            content = stream.read(SEARCHED_BYTES)
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
    print("Trying config.yaml on tiny weights ...", flush=True)
    os.environ.update(config.get("environment_variables") or {})
    try:
        # Hide the libraries' progress bars and warnings.
        with contextlib.redirect_stderr(io.StringIO()):
            return trial.problems(config["model_metadata"]["pipeline"])
    except ValueError as error:
        print(f"Skipped the trial of config.yaml on tiny weights. {error}")
        return []


def main() -> None:
    """Print the list of files. Exits with 1 and the problems if there are any."""
    try:
        config = local_server.read_config()
        local_server.check_with_truss(config)
    except local_server.ConfigError as error:
        sys.exit(str(error))
    files = local_server.pushed_files()
    if problems := link_problems(files):
        sys.exit("\n".join(problems))
    print("`truss push` pushes, in bytes:", flush=True)
    for file in files:
        note = "" if NEEDED.fullmatch(file.as_posix()) else "   the server does not need it: add it to .truss_ignore"
        print(f"  {(local_server.PROJECT / file).stat().st_size:>12,}  {file}{note}", flush=True)
    problems = commit_problems() + accelerator_problems(config) + secret_problems(files)
    # The trial takes seconds, so it comes last.
    if problems := problems or trial_problems(config):
        sys.exit("\n".join(problems))
    print("No problems found.")


if __name__ == "__main__":
    main()

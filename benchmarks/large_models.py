"""Measure cold starts of models that are about as large as the memory of their instance, in the real image.

    python benchmarks/large_models.py CACHE [--models sd3-medium] [--memory 16 24] [--runs 3]

The server runs in a memory cgroup of that many GiB, which counts the page cache, as an instance does. load() touches
every page of the files, component by component, and lets the component go, as a copy to a GPU does. Needs root and
cgroup v1. Prints a row for each model and size: seconds until the model is ready, GB that the disk read until then, the
peak of the cgroup, and how many processes the kernel killed.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from coldstart import (
    HERE,
    build_image,
    container,
    edit,
    emit,
    into_cgroup,
    log_of,
    ready,
    remove_cgroup,
    replace,
    set_page_cache,
)
from container import Container

sys.path.insert(0, str(HERE.parent))
import catalog

CGROUP = Path("/sys/fs/cgroup/memory/fast-truss-bench")
PIPELINE = "packages/cold_start/pipeline.py"
MODELS = ["sd3-medium", "flux2-klein-4b", "z-image-turbo"]
GIB = 2**30
DATA_MB = 64
SINGLE = "return class_.from_single_file(str(path), local_files_only=True, **options)"
FOLDER = "    return model\n\n\n"
TOUCHED = """


def touched(model):
    for part in model.parameters():
        part.data.view(-1)[::1024].sum()
        part.data = part.data.new_empty(0)
    return model
"""


def make_weights(model: str, image: str, cache: Path) -> Path:
    """Make the weights once, with what the image holds."""
    folder, project = cache / f"{model}-full", cache / "projects" / model
    if folder.is_dir():
        return folder
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    block = yaml.safe_load((project / "config.yaml").read_text("utf-8"))["model_metadata"]["pipeline"]
    asked = {"full_size": catalog.load()[model].full_size, "components": block["components"]}
    (unfinished / "sizes.json").write_text(json.dumps(asked), "utf-8")
    mounts = {HERE: "/benchmarks", project: "/project"}
    with container.container(image) as box:
        for command in (
            ["/project/tiny/make.py", "/weights"],
            ["/benchmarks/full_size.py", "/weights", "/weights/sizes.json", str(DATA_MB)],
        ):
            subprocess.run(
                box.command("python3", *command, mounts=mounts, writable={unfinished: "/weights"}), check=True
            )
    return unfinished.rename(folder)


@contextlib.contextmanager
def limited(gib: int) -> Iterator[list[str]]:
    """Yield what a command begins with to run in a cgroup of so much memory."""
    CGROUP.mkdir(exist_ok=True)
    try:
        (CGROUP / "memory.limit_in_bytes").write_text(str(gib * GIB))
        (CGROUP / "memory.max_usage_in_bytes").write_text("0")
        yield into_cgroup(CGROUP)
    finally:
        remove_cgroup(CGROUP)


def disk_bytes(folder: Path) -> int:
    """Return what the disk of the folder has read since the machine started."""
    device = os.stat(folder).st_dev
    stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text("utf-8")
    return int(stat.split()[2]) * 512


def start(box: Container, weights: Path, gib: int) -> dict[str, Any]:
    """One cold start."""
    set_page_cache("cold", [])
    before = disk_bytes(weights)
    with limited(gib) as begin, ready(box, weights, begin) as (started, *_):
        return {
            "ready_s": time.perf_counter() - started,
            "disk_gb": (disk_bytes(weights) - before) / 1e9,
            "peak_gb": int((CGROUP / "memory.max_usage_in_bytes").read_text()) / 1e9,
            "killed": int(re.search(r"oom_kill (\d+)", (CGROUP / "memory.oom_control").read_text())[1]),
            "said": re.search(r"Reading ahead[^\"\\]*", log_of(box).read_text("utf-8"))[0],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=lambda text: Path(text).absolute(), metavar="CACHE", help="Keeps the weights.")
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"Presets. Default: {' '.join(MODELS)}.")
    parser.add_argument("--memory", nargs="+", type=int, default=[16, 24], help="GiB. Default: 16 24.")
    parser.add_argument("--runs", type=int, default=3, help="Of each, in alternation. Default: 3.")
    arguments = parser.parse_args()
    for model in arguments.models:
        image = f"fast-truss-{model}"
        build_image(emit(model, arguments.cache), image, arguments.cache)
        weights = make_weights(model, image, arguments.cache)
        size = sum(file.stat().st_size for file in weights.rglob("*.safetensors")) / 1e9
        with container.container(image, HF_HUB_OFFLINE="1", TQDM_DISABLE="1") as box:
            # As on a GPU: half precision.
            file = box.root / "app" / "config.yaml"
            edit(file, lambda config: half(config["model_metadata"]["pipeline"]))
            replace(PIPELINE, SINGLE, f"return touched({SINGLE.removeprefix('return ')})")(box)
            replace(PIPELINE, FOLDER, f"    return touched(model){TOUCHED}\n\n")(box)
            runs: dict[int, list[dict[str, Any]]] = {gib: [] for gib in arguments.memory}
            for _ in range(arguments.runs):
                for gib, found in runs.items():
                    found.append(start(box, weights, gib))
                    print(model, gib, found[-1], file=sys.stderr)
        for gib, found in runs.items():
            names = ("ready_s", "disk_gb", "peak_gb")
            middle = [f"{statistics.median(run[name] for run in found):.1f}" for name in names]
            print(f"| `{model}` | {size:.1f} | {gib} | {' | '.join(middle)} | {sum(run['killed'] for run in found)} |")


def half(pipeline: dict[str, Any]) -> None:
    pipeline["cpu_dtype"] = pipeline["dtype"]


if __name__ == "__main__":
    main()

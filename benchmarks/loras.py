"""Measure what LoRAs that requests choose add to load(), and what one costs at its first use and later.

    PROJECT_PYTHON benchmarks/loras.py PROJECT WEIGHTS [--counts 0 1 10] [--rounds 3] [--no-image]    # make bench-loras

PROJECT: an emitted project of the preset sdxl. WEIGHTS: a folder that holds its weights, as build/weights/sdxl does
after `make bench`, or tiny ones. Each LoRA is of every attention and feed-forward layer of the UNet, of rank RANK, in
half precision. Each load is a process of its own that has imported everything before; the files are in the page cache.
Prints a table of medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RANK = 16
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
SWITCHES, IMAGES = 20, 3
# One step of a small image: a CPU is slow.
SMALL = {"prompt": "a boat", "num_inference_steps": 1, "width": 64, "height": 64, "guidance_scale": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 1, 10])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-image", action="store_true", help="Make none: with full weights a CPU takes minutes.")
    parser.add_argument("--load", type=int, help="Load with so many LoRAs, and print one JSON object.")
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.project.resolve()), str(arguments.project.resolve() / "packages")]
    if arguments.load is not None:
        return load(arguments.weights, arguments.load, images=0 if arguments.no_image else IMAGES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part in arguments.weights.resolve().iterdir():
            (folder / part.name).symlink_to(part)
        size = write_loras(folder, max(arguments.counts))
        print(f"{size / 1e6:.0f} MB each, rank {RANK}\n")
        command = [sys.executable, __file__, str(arguments.project), str(folder)]
        command += ["--no-image"] * arguments.no_image + ["--load"]
        found: dict[int, list[dict[str, float]]] = {count: [] for count in arguments.counts}
        for number in range(arguments.rounds + 1):
            for count in arguments.counts:
                said = json.loads(subprocess.run([*command, str(count)], check=True, capture_output=True).stdout)
                if number:  # the first fills the page cache
                    found[count].append(said)
    names = list(found[arguments.counts[0]][0])
    print(f"| LoRAs | {' | '.join(names)} |\n|{' --- |' * (len(names) + 1)}")
    for count, runs in found.items():
        print(f"| {count} | {' | '.join(f'{statistics.median(run[name] for run in runs):.3f}' for name in names)} |")


def settings_of(weights: Path, count: int) -> object:
    """Return the settings of config.yaml on these weights, with count LoRAs that a request can choose."""
    from model.model import SETTINGS
    from pipeline_settings import Lora

    loras = [Lora(name=f"style-{number}", scale=1.0, fused=False) for number in range(count)]
    # In half precision, as on a GPU, and with the VAE of the pipeline.
    changes = {"weights_dir": str(weights), "cpu_dtype": SETTINGS.dtype, "components": {}, "loras": loras}
    return SETTINGS.model_copy(update=changes)


def write_loras(folder: Path, count: int) -> int:
    """Write one and link the others to it. Returns its bytes."""
    import diffusers
    import torch
    from safetensors.torch import save_file

    config = json.loads((folder / "pipeline" / "unet" / "config.json").read_text("utf-8"))
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(config)
    tensors = {}
    for path, layer in unet.named_modules():
        if path.endswith(LAYERS):
            tensors[f"unet.{path}.lora_A.weight"] = torch.randn(RANK, layer.in_features).half() / 100
            tensors[f"unet.{path}.lora_B.weight"] = torch.randn(layer.out_features, RANK).half() / 100
    file = folder / "style.safetensors"
    save_file(tensors, file)
    for number in range(count):
        (folder / f"lora-style-{number}").mkdir()
        (folder / f"lora-style-{number}" / "style.safetensors").symlink_to(file)
    return file.stat().st_size


def load(weights: Path, count: int, images: int) -> None:
    """Print the seconds of read_pipeline() and of proving the files, of choices, and of an image with and without."""
    import psutil
    from cold_start import lean_imports
    from cold_start.phases import without_garbage_collection
    from cold_start.pipeline import read_pipeline
    from model.pipelines import Loras

    settings = settings_of(weights, count)
    with without_garbage_collection():  # as load() does
        lean_imports.import_diffusers(settings.class_name)
    started = time.perf_counter()
    pipeline = read_pipeline(settings, "cpu")
    read = time.perf_counter()
    loras = Loras(pipeline, settings)
    proved = time.perf_counter()
    names = [f"style-{number}" for number in range(count)]

    def choose(name: str) -> float:
        """Return the seconds that a choice takes, in and out, of the time of a request."""
        began = time.perf_counter()
        with loras.chosen({name: 0.8}):
            pass
        return time.perf_counter() - began

    first = [choose(name) for name in names]
    ready = [choose(name) for name in names[-1:] * SWITCHES]
    found = {
        "weights s": read - started,
        "proof s": proved - read,
        "first use s": statistics.median(first or [0.0]),
        "ready ms": statistics.median(ready or [0.0]) * 1000,
        "memory GB": psutil.Process(os.getpid()).memory_info().rss / 1e9,
    }

    def image(scales: dict[str, float]) -> float:
        began = time.perf_counter()
        with loras.chosen(scales):
            pipeline(**SMALL, output_type="np")
        return time.perf_counter() - began

    if images:
        chosen = dict.fromkeys(names[:1], 0.8)
        image({})
        found["image without s"] = statistics.median(image({}) for _ in range(images))
        found["image with s"] = statistics.median(image(chosen) for _ in range(images))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

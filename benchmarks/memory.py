"""Predict the peak memory of every preset on a GPU, without one, and choose the smallest GPU that holds it.

    python benchmarks/memory.py PROJECT_PYTHON [--presets sdxl sd15] [--jobs 2]

memory_of_presets.py runs the real server at full size on a simulated GPU. What the scratch memory of kernels and CUDA's
context add is fitted on published peaks. Writes MEMORY.md beside this file, or prints the table of some presets.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cookiecutter.main import cookiecutter

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE.parent
sys.path.insert(0, str(TEMPLATE / "tests"))
from conftest import ACCELERATOR_FACTS, FACTS, PRESETS, render_config  # noqa: E402

GIB = 2**30
# What torch says that it can have of each, in its errors of too little memory: GiB. The cheapest first of equals.
GPUS = {
    "T4": 14.56,
    "L4": 21.96,
    "A10G": 22.06,
    "H100_40GB": 39.25,
    "A100_40GB": 39.39,
    "L40S": 44.40,
    "A100": 79.14,
    "H100": 79.10,
    "RTX_PRO_6000": 94.97,
    "H200": 139.80,
    "B200": 178.35,
}
# What CUDA takes before the first tensor. The published peaks are those of torch's allocator, without it.
CONTEXT = 0.5e9


@dataclasses.dataclass(frozen=True)
class Published:
    """A peak that somebody measured, in bytes, at 1024 px and batch 1 but for sd15's 512, with nothing offloaded.

    What is published as GB may be GiB. The blog's is taken as that: else its peaks were less than the live tensors. Of
    Z-Image's it is not known, and GB are closer.

    halved: the layers of T5 that transformers keeps in float32 for a float16 model were in half precision there.
    decode_of: the preset whose decode is measured, as theirs was in half precision.
    """

    preset: str
    bytes: float
    source: str
    halved: bool = False
    decode_of: str | None = None


BENCHMARK = "sayakpaul/sample-datasets, collated_results_sdxl.csv, A100"
BLOG = "Hugging Face's blog on quanto and diffusers, H100"
PUBLISHED = (
    Published("sdxl", 8.96 * GIB, BENCHMARK),
    Published("ssd-1b", 6.5 * GIB, f"{BENCHMARK}, compiled", decode_of="sdxl"),
    Published("sd15", 2.7 * GIB, f"{BENCHMARK}, compiled"),
    Published("pixart-sigma", 12.1 * GIB, BLOG, halved=True),
    Published("sd3-medium", 16.4 * GIB, BLOG, halved=True, decode_of="sd3.5-medium"),
    Published("z-image-turbo", 24.87e9, "asomoza/diffusers-recipes, RTX 5090"),
    Published("z-image-turbo-8bit", 20.06e9, "asomoza/diffusers-recipes, RTX 5090"),
)
# In float16, transformers keeps a layer of each block of T5 in float32: 24 of 10240 x 4096 numbers, in T5 1.1 XXL.
KEPT_OF_T5 = 24 * 10240 * 4096 * 2


@dataclasses.dataclass(frozen=True)
class Fit:
    """allocated = weights + factor x (peak - weights) + constant."""

    factor: float
    constant: float

    def allocated(self, weights: float, peak: float) -> float:
        return weights + self.factor * (peak - weights) + self.constant

    def needed(self, found: dict[str, Any], request: str) -> float:
        """Return what a GPU must have for the request. Its LoRAs are weights."""
        weights = found["weights"] + (found["loras"] if request.endswith("LoRAs") else 0)
        return self.allocated(weights, peak(found, request)) + CONTEXT


# What all published peaks give: of some presets alone it is not fitted anew.
FITTED = Fit(1.88, 0.01e9)


def measure(python: str, presets: list[str], jobs: int) -> dict[str, dict[str, Any]]:
    """Return what memory_of_presets.py writes of each preset."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Bounds of single fields are those of the project: this one has the largest.
        largest = max(PRESETS, key=lambda preset: _block(preset)["limits"]["max_size"])
        project = cookiecutter(str(TEMPLATE), no_input=True, extra_context={"preset": largest}, output_dir=folder)
        (folder / "blocks.json").write_text(json.dumps({preset: _block(preset) for preset in PRESETS}), "utf-8")
        (folder / "readmes.json").write_text("{}", "utf-8")
        environment = {
            **os.environ,
            "EMITTED_PROJECT": project,
            "PIPELINE_BLOCKS": str(folder / "blocks.json"),
            "READMES": str(folder / "readmes.json"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [python, "-W", "ignore", str(HERE / "memory_of_presets.py"), name]
        running = [
            subprocess.Popen([*command, *presets[job::jobs]], env=environment, stderr=subprocess.DEVNULL)
            for job in range(min(jobs, len(presets)))
        ]
        for process in running:
            process.wait()
        return {preset: json.loads((folder / f"{preset}.json").read_text("utf-8")) for preset in presets}


def _block(preset: str) -> dict[str, Any]:
    return dict(render_config(preset=preset).model_metadata["pipeline"])


def peak(found: dict[str, Any], request: str) -> int:
    return max(found["requests"][request].values())


def compared(measured: dict[str, dict[str, Any]]) -> list[tuple[Published, float, float]]:
    """Return each published peak with the weights and the peak that were found for it."""
    rows = []
    for each in PUBLISHED:
        decode = measured.get(each.decode_of or each.preset)
        if each.preset not in measured or decode is None:
            continue
        weights = measured[each.preset]["weights"] - (KEPT_OF_T5 if each.halved else 0)
        rows.append((each, weights, weights + peak(decode, "default") - decode["weights"]))
    return rows


def fit(rows: list[tuple[Published, float, float]]) -> Fit:
    """Return the least squares of what is published above the weights, over what was found above them."""
    found = [top - weights for _, weights, top in rows]
    true = [each.bytes - weights for each, weights, _ in rows]
    middle_found, middle_true = sum(found) / len(found), sum(true) / len(true)
    slope = sum((x - middle_found) * (y - middle_true) for x, y in zip(found, true, strict=True))
    slope /= sum((x - middle_found) ** 2 for x in found)
    return Fit(slope, middle_true - slope * middle_found)


def smallest(needed: float, dtype: str) -> str | None:
    """Return the smallest GPU of Baseten that holds so many bytes."""
    for name, gib in GPUS.items():
        if gib * GIB >= needed and (dtype != "bfloat16" or ACCELERATOR_FACTS[name].bfloat16):
            return name
    return None


def report(measured: dict[str, dict[str, Any]], model: Fit, rows: list[tuple[Published, float, float]]) -> str:
    lines = [(HERE / "configs" / "memory_head.md").read_text("utf-8"), "## Held against published peaks", ""]
    lines += head("preset", "weights", "found", "predicted", "published", "error", "source")
    for each, weights, top in rows:
        allocated = model.allocated(weights, top)
        error = f"{allocated / each.bytes - 1:+.1%}"
        lines.append(row(each.preset, weights, top, allocated, each.bytes, error, each.source))
    lines += [
        "",
        f"predicted = weights + {model.factor:.2f} x (found - weights) {model.constant / 1e9:+.2f} GB. A GPU must",
    ]
    lines += [f"have {gb(CONTEXT)} GB more, for CUDA's context, which the published peaks leave out (assumed)."]
    lines += ["", "## Every preset", ""]
    lines += head("preset", "now", "weights", "load", "default", "largest", "of", "GPU", "without LoRAs", "GPU of that")
    for preset, found in measured.items():
        config = render_config(preset=preset)
        block, dtype = config.model_metadata["pipeline"], config.model_metadata["pipeline"]["dtype"]
        most = {request: model.needed(found, request) for request in found["requests"]}
        worst = max(most, key=lambda request: most[request])
        plain = max(needed for request, needed in most.items() if not request.endswith("LoRAs"))
        now = f"{config.model_metadata['gpu_memory_gb']} GB, {config.resources.accelerator.accelerator.value}"
        of = f"{block['limits']['max_size']} px, {worst.removeprefix('largest, ')}"
        cells = [
            preset,
            now,
            found["weights"],
            found["load"],
            most["default"],
            most[worst],
            of,
            smallest(most[worst], dtype),
        ]
        lines.append(row(*cells, plain, smallest(plain, dtype)))
    lines += ["", "## Live tensors, by stage", "", *head("preset", "request", "text", "step", "decode")]
    for preset, found in measured.items():
        for request, stages in found["requests"].items():
            lines.append(row(preset, request, *(stages[stage] for stage in ("text", "step", "decode"))))
    return "\n".join(lines) + "\n"


def head(*names: str) -> list[str]:
    return [row(*names), row(*["---"] * len(names))]


def row(*cells: Any) -> str:
    """Return a row of a table. Numbers are bytes."""
    return "| " + " | ".join(gb(cell) if isinstance(cell, int | float) else str(cell) for cell in cells) + " |"


def gb(size: float) -> str:
    return f"{size / 1e9:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="of the environment of an emitted project")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--found", type=Path, help="a folder of what memory_of_presets.py wrote before")
    options = parser.parse_args()
    if options.found:
        measured = {file.stem: json.loads(file.read_text("utf-8")) for file in options.found.glob("*.json")}
        measured = {preset: measured[preset] for preset in options.presets if preset in measured}
    else:
        measured = measure(options.python, options.presets, options.jobs)
    for preset, found in measured.items():
        if "error" in found:
            sys.exit(f"{preset}: {found['error']}")
        if not 0.98 < found["weights"] / 1e9 / FACTS[preset].weights_gb < 1.02:
            sys.exit(
                f"{preset} has {gb(found['weights'])} GB of weights, and the catalog says otherwise: see sizes.yaml"
            )
    rows = compared(measured)
    whole = [*measured] == PRESETS
    table = report(measured, fit(rows) if whole else FITTED, rows)
    print(table)
    if whole:
        (HERE / "MEMORY.md").write_text(table, "utf-8")


if __name__ == "__main__":
    main()

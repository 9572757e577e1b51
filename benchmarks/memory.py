"""Predict the peak memory of every preset on a GPU, without one, and choose the smallest GPU that holds it.

    python benchmarks/memory.py PROJECT_PYTHON [--presets sdxl sd15] [--jobs 2]
    python benchmarks/memory.py PROJECT_PYTHON --gpu L4     # on a real one: what was predicted, and what it is

memory_of_presets.py runs the real server at full size on a simulated GPU. What the scratch memory of kernels and CUDA's
context add is fitted on published peaks. Writes catalog/memory.yaml and MEMORY.md, of some presets their lines alone.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from cookiecutter.main import cookiecutter

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE.parent
sys.path.insert(0, str(TEMPLATE / "tests"))
from conftest import ACCELERATOR_FACTS, FACTS, PRESETS, render_config  # noqa: E402  # isort: skip  # it finds catalog

from catalog import cheapest, fitted  # noqa: E402
from catalog.schema import Memory  # noqa: E402

GIB = 2**30
# What CUDA takes before the first tensor. The published peaks are those of torch's allocator, without it.
CONTEXT = 0.5e9


@dataclasses.dataclass(frozen=True)
class Published:
    """A peak that somebody measured, in bytes, at 1024 px and batch 1 but for sd15's 512, with nothing offloaded.

    What is published as GB may be GiB. The blog's is taken as that: else its peaks were less than the live tensors. Of
    Z-Image's it is not known, and GB are closer.

    halved: the layers of T5 that transformers keeps in float32 for a float16 model were in half precision there.
    """

    preset: str
    bytes: float
    source: str
    halved: bool = False


BENCHMARK = "sayakpaul/sample-datasets, collated_results_sdxl.csv, A100"
BLOG = "Hugging Face's blog on quanto and diffusers, H100"
PUBLISHED = (
    Published("sdxl", 8.96 * GIB, BENCHMARK),
    Published("ssd-1b", 6.5 * GIB, f"{BENCHMARK}, compiled"),
    Published("sd15", 2.7 * GIB, f"{BENCHMARK}, compiled"),
    Published("pixart-sigma", 12.1 * GIB, BLOG, halved=True),
    Published("sd3-medium", 16.4 * GIB, BLOG, halved=True),
    Published("z-image-turbo", 24.87e9, "asomoza/diffusers-recipes, RTX 5090"),
    Published("z-image-turbo-8bit", 20.06e9, "asomoza/diffusers-recipes, RTX 5090"),
)
# In float16, transformers keeps a layer of each block of T5 in float32: 24 of 10240 x 4096 numbers, in T5 1.1 XXL.
KEPT_OF_T5 = 24 * 10240 * 4096 * 2


@dataclasses.dataclass(frozen=True)
class Fit:
    """allocated = weights + factor x (peak - weights) + constant. reserve: the most that it was too low, in bytes."""

    factor: float
    constant: float
    reserve: float

    def allocated(self, weights: float, peak: float) -> float:
        return weights + self.factor * (peak - weights) + self.constant

    def needed(self, found: dict[str, Any], request: str) -> float:
        """Return what a GPU must have for the request. Its LoRAs are weights."""
        weights = found["weights"] + (found["loras"] if request.endswith("LoRAs") else 0)
        return self.allocated(weights, peak(found, request)) + CONTEXT + self.reserve

    def most(self, found: dict[str, Any], size: str) -> float:
        """Return what a GPU must have for each kind of request of the size, default or largest, without LoRAs."""
        kinds = [request for request in found["requests"] if request.startswith(size) and "LoRAs" not in request]
        return max(self.needed(found, request) for request in kinds)


# What all published peaks give: of some presets alone it is not fitted anew.
FITTED = Fit(1.88, 0.01e9, 1.57e9)


def measure(python: str, presets: list[str], jobs: int, **more: str) -> dict[str, dict[str, Any]]:
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
            **more,
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
    """Return the block of the preset's config.yaml, with images of max_size x max_size allowed."""
    block = dict(render_config(preset=preset).model_metadata["pipeline"])
    return {**block, "limits": {**block["limits"], "max_pixels": block["limits"]["max_size"] ** 2}}


def peak(found: dict[str, Any], request: str) -> int:
    return max(found["requests"][request].values())


def compared(measured: dict[str, dict[str, Any]]) -> list[tuple[Published, float, float]]:
    """Return each published peak with the weights and the peak that were found for it."""
    rows = []
    for each in PUBLISHED:
        if each.preset not in measured:
            continue
        found, less = measured[each.preset], KEPT_OF_T5 if each.halved else 0
        rows.append((each, found["weights"] - less, peak(found, "default, text") - less))
    return rows


def fit(rows: list[tuple[Published, float, float]]) -> Fit:
    """Return the least squares of what is published above the weights, over what was found above them."""
    found = [top - weights for _, weights, top in rows]
    true = [each.bytes - weights for each, weights, _ in rows]
    middle_found, middle_true = sum(found) / len(found), sum(true) / len(true)
    slope = sum((x - middle_found) * (y - middle_true) for x, y in zip(found, true, strict=True))
    slope /= sum((x - middle_found) ** 2 for x in found)
    constant = middle_true - slope * middle_found
    reserve = max(y - slope * x - constant for x, y in zip(found, true, strict=True))
    return Fit(slope, constant, max(reserve, 0))


def needed_at_most(preset: str) -> float:
    """Return the GB of its images of max_size x max_size, which are measured too."""
    return FACTS[preset].needed(FACTS[preset].max_size ** 2)


def compared_with_gpu(measured: dict[str, dict[str, Any]]) -> str:
    """Return a table: the peaks of the allocator of a real GPU beside those that the catalog predicts."""
    lines = head("preset", "size", "predicted", "measured", "error")
    for preset, found in measured.items():
        facts = FACTS[preset]
        for size, side in (("default", facts.size), ("largest", facts.max_size)):
            if "error" in found:
                lines.append(row(preset, size, "", found["error"], ""))
                continue
            kinds = [kind for kind in found["requests"] if kind.startswith(size) and "LoRAs" not in kind]
            true, predicted = max(peak(found, kind) for kind in kinds), facts.needed(side**2) * 1e9
            predicted -= CONTEXT + FITTED.reserve
            lines.append(row(preset, f"{side} px", predicted, true, f"{predicted / true - 1:+.1%}"))
    return "\n".join(lines)


def memory_of(preset: str, found: dict[str, Any], model: Fit) -> Memory:
    """Return the line through the default and the largest size.

    In between a request needs no more: each stage is linear in the pixels, and so the most of them is convex.
    """
    facts = FACTS[preset]
    small, large = facts.size**2 / 1e6, facts.max_size**2 / 1e6
    low, high = (model.most(found, size) / 1e9 for size in ("default", "largest"))
    slope = (high - low) / (large - small) if large > small else 0.0
    lora = 0.0
    if "loras" in found:
        lora = max(found["loras"] / 1e9, model.needed(found, "largest, LoRAs") / 1e9 - high)
        lora /= _block(preset)["limits"]["loras"]
    return Memory(
        fixed=round(low - slope * small, 2),
        per_megapixel=round(slope, 3),
        per_lora=round(lora, 2),
        predicted=round(model.allocated(found["weights"], peak(found, "default, text")) / 1e9, 2),
        published=next((round(each.bytes / 1e9, 2) for each in PUBLISHED if each.preset == preset), None),
    )


def write(memory: dict[str, Memory]) -> None:
    """Put these presets into the catalog, which keeps the others."""
    path = TEMPLATE / "catalog" / "memory.yaml"
    known = {
        **(yaml.safe_load(path.read_text("utf-8")) or {}),
        **{preset: each.model_dump() for preset, each in memory.items()},
    }
    lines = [f"{preset}: {json.dumps(known[preset]).replace(chr(34), '')}" for preset in PRESETS if preset in known]
    head = path.read_text("utf-8").partition("\n\n")[0]
    path.write_text(head + "\n\n" + "\n".join(lines) + "\n", "utf-8")


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
        f"have {gb(CONTEXT)} GB more, for CUDA's context, which the published peaks leave out (assumed), and a reserve",
        f"of {gb(model.reserve)} GB: the most that a prediction was too low.",
        "",
        "## Every preset",
        "",
    ]
    lines += head(
        "preset", "weights", "load", "default", "at max_size", "megapixels", "at these", "a LoRA", "GPU", "USD/h"
    )
    for preset, found in measured.items():
        facts, memory = FACTS[preset], memory_of(preset, found, model)
        gpu = cheapest(facts.model_copy(update={"memory": memory}), ACCELERATOR_FACTS)
        facts = fitted(preset, facts.model_copy(update={"memory": memory, "accelerator": gpu}), ACCELERATOR_FACTS)
        most = [model.most(found, size) for size in ("default", "largest")]
        pixels = [f"{facts.max_pixels / 1e6:.2f}", facts.needs_gb * 1e9, memory.per_lora * 1e9]
        price = f"{ACCELERATOR_FACTS[facts.accelerator].usd_per_hour:.2f}"
        lines.append(row(preset, found["weights"], found["load"], *most, *pixels, gpu, price))
    lines += ["", "## Live tensors, by stage", "", *head("preset", "request", "text", "step", "decode")]
    for preset, found in measured.items():
        for request, stages in found["requests"].items():
            lines.append(row(preset, request, *(stages[stage] for stage in ("text", "step", "decode"))))
    return "\n".join(lines) + "\n"


def with_rows(old: str, new: str) -> str:
    """Return the report of all presets with the rows of new, one of some presets, in place of theirs."""
    tables = re.compile(r"^(?=## (?:Every preset|Live tensors))", re.MULTILINE)
    whole, *sections = tables.split(old)
    for section, other in zip(sections, tables.split(new)[1:], strict=True):
        lines, measured = section.splitlines(), other.splitlines()
        first = next(number for number, line in enumerate(lines) if line.startswith("| --- |")) + 1
        rows = [line for preset in PRESETS for line in (_of(preset, measured) or _of(preset, lines))]
        whole += "\n".join([*lines[:first], *rows, "", ""])
    return whole.removesuffix("\n")


def _of(preset: str, lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(f"| {preset} |")]


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
    parser.add_argument(
        "--gpu", choices=ACCELERATOR_FACTS, help="the one of this machine: measure the presets that fit"
    )
    parser.add_argument("--found", type=Path, help="a folder of what memory_of_presets.py wrote before")
    options = parser.parse_args()
    if options.gpu:
        gpu = ACCELERATOR_FACTS[options.gpu]
        fitting = [preset for preset in options.presets if gpu.holds(needed_at_most(preset), FACTS[preset].dtype)]
        print(compared_with_gpu(measure(options.python, fitting, 1, REAL_GPU="1")))
        return
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
                f"{preset} has {gb(found['weights'])} GB of weights, and the catalog says otherwise: see its full_size"
            )
    rows = compared(measured)
    whole = [*measured] == PRESETS
    model = fit(rows) if whole else FITTED
    table = report(measured, model, rows)
    print(table)
    write({preset: memory_of(preset, found, model) for preset, found in measured.items()})
    path = HERE / "MEMORY.md"
    path.write_text(table if whole else with_rows(path.read_text("utf-8"), table), "utf-8")


if __name__ == "__main__":
    main()

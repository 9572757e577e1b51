"""Tables, charts and the summary of what coldstart.py measured."""

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

PHASES = (
    "server_start",
    "import_torch",
    "import_diffusers",
    "cuda_init",
    "wait_for_weights",
    "read_weights",
    "warm_up",
)
NAMES = {
    "ours": "fast-truss",
    "naive": "naive: full precision, `.to(device)`",
    "examples": "official examples: half precision, `.to(device)`",
    "device_map": "half precision, `device_map`",
}
STATES = {
    "cold": "cold page cache",
    "warm": "warm page cache",
    "limited": "tiny weights, cold page cache, at most 300 MB/s from the disk",
}
NEVER = 0.001  # s: a phase that took no time


def write(found: dict[str, Any], folder: Path, levers: bool) -> None:
    """Write the table and the chart, and print the table and, as the last line, the summary in JSON."""
    stem = "levers" if levers else "coldstart"
    models = [name for name in found if name != "machine"]
    text = f"Measured on {found['machine']}. Medians, with the range in parentheses, and the highest peak.\n"
    for model in models:
        for state in (state for state in STATES if state in found[model]):
            text += f"\n{title(model, found[model], state)}:\n\n{table(found[model][state])}"
    (folder / f"{stem}.md").write_text(text, "utf-8")
    print(text)
    if not levers:
        chart(found, models, folder / f"{stem}.png")
    print(json.dumps({model: summary(found[model]) for model in models}))


def title(model: str, measured: dict[str, Any], state: str) -> str:
    size = "" if state == "limited" else f" {measured['weights_gb']:.2f} GB,"
    return f"{model},{size} {STATES[state]}"


def table(measured: dict[str, Any]) -> str:
    """One row for each subject and one for the floor. Seconds, and GB of peak memory."""
    phases = [
        name for name in PHASES if any(name in run["phases"] for runs in measured["runs"].values() for run in runs)
    ]
    first_image = all(run["first_image_s"] for runs in measured["runs"].values() for run in runs)
    head = ["", "runs", "ready", *phases, *(["to the first image"] if first_image else []), "peak GB"]
    rows = [head, ["---"] * len(head)]
    for name, runs in measured["runs"].items():
        cells = [f"{median(run['phases'].get(phase, 0) for run in runs):.2f}" for phase in phases]
        peak = max(run["peak_gb"] for run in runs)
        rows.append(
            [
                NAMES.get(name, name),
                str(len(runs)),
                spread(run["ready_s"] for run in runs),
                *cells,
                *([spread(run["first_image_s"] for run in runs)] if first_image else []),
                f"{peak:.2f}",
            ]
        )
    floors = measured["floors"]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"{lines}\n\nThe runs alternate. Floor: "
        f"{spread(floor['floor_s'] for floor in floors)} s, "
        f"the longer of all imports alone, {spread(floor['imports_s'] for floor in floors)} s, and one read of the "
        f"weights, {spread(floor['read_s'] for floor in floors)} s, with "
        f"{median(floor['library_gb'] for floor in floors):.2f} GB of libraries at the same speed.\n"
    )


def chart(found: dict[str, Any], models: list[str], file: Path) -> None:
    """Stacked bars of the phases, one panel for each model and state."""
    panels = [(model, state) for model in models for state in STATES if state in found[model]]
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(8, 1.9 * len(panels)), layout="constrained", squeeze=False)
    used = [phase for phase in PHASES if any(shown(found[m][s], phase) for m, s in panels)]
    for axis, (model, state) in zip(axes[:, 0], panels, strict=True):
        runs = found[model][state]["runs"]
        names = list(runs)[::-1]
        labels = [name.replace("ours", "fast-truss") for name in names]
        left = [0.0] * len(names)
        for number, phase in enumerate(used):
            widths = [median(run["phases"].get(phase, 0) for run in runs[name]) for name in names]
            axis.barh(labels, widths, left=left, label=phase.replace("_", " "), color=f"C{number}")
            left = [a + b for a, b in zip(left, widths, strict=True)]
        ready = [median(run["ready_s"] for run in runs[name]) for name in names]
        rest = [max(0.0, a - b) for a, b in zip(ready, left, strict=True)]
        axis.barh(labels, rest, left=left, label="other, rest of the weights", color="lightgray")
        for label, seconds in zip(labels, ready, strict=True):
            axis.text(seconds, label, f" {seconds:.1f} s", va="center", fontsize=8)
        floor = median(entry["floor_s"] for entry in found[model][state]["floors"])
        axis.axvline(floor, color="black", linestyle=":", label="floor")
        axis.set_title(title(model, found[model], state), fontsize=9)
        axis.set_xlim(0, 1.12 * max(*ready, floor))
    axes[-1, 0].set_xlabel("seconds from the start of the process until it is ready")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(found["machine"], fontsize=8)
    figure.savefig(file, dpi=120)


def shown(measured: dict[str, Any], phase: str) -> bool:
    return any(run["phases"].get(phase, 0) > NEVER for runs in measured["runs"].values() for run in runs)


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """Return seconds until ready, and ours as a part of the official examples', of the floor and of our warm start."""
    result = {}
    for state in (state for state in STATES if state in measured):
        ready = {name: median(run["ready_s"] for run in runs) for name, runs in measured[state]["runs"].items()}
        floor = median(entry["floor_s"] for entry in measured[state]["floors"])
        result[state] = {f"{name}_s": round(seconds, 2) for name, seconds in ready.items()}
        result[state] |= {"floor_s": round(floor, 2), "ratio_floor": round(ready["ours"] / floor, 3)}
        if "examples" in ready:
            result[state]["ratio_examples"] = round(ready["ours"] / ready["examples"], 3)
        if "warm" in measured and state != "warm":
            warm = median(run["ready_s"] for run in measured["warm"]["runs"]["ours"])
            result[state]["ratio_warm"] = round(ready["ours"] / warm, 3)
    return result


def median(values: Any) -> float:
    return statistics.median(list(values))


def spread(values: Any) -> str:
    values = list(values)
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

"""Measure what `compile: regional` adds to a cold start, with an empty and with a filled cache of the compiler.

    python benchmarks/compile_cost.py PROJECT_PYTHON

The real local server of an emitted project, on tiny pipelines with a UNet and with a transformer. The ways alternate.
It prints the phase warm_up, which holds the compilation, in seconds: the median, and all runs.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import httpx
import yaml
from cookiecutter.main import cookiecutter
from under_load import PREDICT, SMALL, TEMPLATE, served

PRESETS = ("sd15", "flux-schnell")
ROUNDS = 5
WAYS = ("null", "regional, empty cache", "regional, filled cache")


def warm_up_seconds(python: str, project: Path, folder: Path, way: str) -> float:
    """Return how long the phase took in a new server. folder: keeps the weights and the cache."""
    cache = folder / "cache"
    if "empty" in way:
        shutil.rmtree(cache, ignore_errors=True)
    app = folder / "app"
    shutil.rmtree(app, ignore_errors=True)
    edit = {"compile": None if way == "null" else "regional", "warm_up": True, "warm_up_sizes": [[256, 256]]}
    config = yaml.safe_load((project / "config.yaml").read_text("utf-8"))
    config["environment_variables"]["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    config["model_metadata"]["pipeline"].update(edit)
    (project / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    with served(python, project, app, concurrency=1, imitated=False) as url:
        answer = httpx.post(url + PREDICT, json=SMALL, timeout=300).raise_for_status().json()
    return answer["timings"]["cold_start"]["warm_up"]


def main() -> None:
    python = str(Path(sys.argv[1]).absolute())
    print("| | " + " | ".join(f"`compile`: {way}" for way in WAYS) + " |\n|" + " --- |" * (len(WAYS) + 1))
    for preset in PRESETS:
        with tempfile.TemporaryDirectory() as temporary:
            project = cookiecutter(str(TEMPLATE), no_input=True, output_dir=temporary, extra_context={"preset": preset})
            found: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(ROUNDS):
                for way in WAYS:
                    found[way].append(warm_up_seconds(python, Path(project), Path(temporary), way))
        shown = [f"{statistics.median(runs):.1f} ({' '.join(f'{run:.1f}' for run in runs)})" for runs in found.values()]
        print(f"| {preset} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()

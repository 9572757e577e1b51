"""Measure what wake is for: the wait after pressing the button, with and without a wake when the page opens.

    python benchmarks/wake.py PROJECT_PYTHON

A visitor types for T seconds. The platform is tests/fake_baseten.py with the real local Truss server on a
tiny pipeline. Runs alternate; the numbers are medians. Writes benchmarks/wake.png and benchmarks/wake.md, and
prints one JSON object as its last line.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import matplotlib
from cookiecutter.main import cookiecutter

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).resolve().parent
TYPED = (0, 2, 5, 10, 20)
RUNS = 5
# What a visitor sends who changes nothing: the project's own size and steps.
BODY = {"prompt": "a boat", "seed": 1}
KEY = {"Authorization": "Api-Key good-key"}


def measure(http: httpx.Client, typed: float, wakes: bool) -> dict[str, float]:
    """Return seconds: the wait after pressing, the answer of wake, and a warm request. From zero replicas."""
    http.post("/_platform", json={"scale_to_zero": True}).raise_for_status()
    opened = time.perf_counter()
    if wakes:
        http.post("/model-model/production/wake").raise_for_status()
    woken = time.perf_counter() - opened
    time.sleep(max(0.0, typed - woken))
    pressed = time.perf_counter()
    http.post("/model-model/production/predict", json=BODY).raise_for_status()
    wait = time.perf_counter() - pressed
    again = time.perf_counter()
    http.post("/model-model/production/predict", json=BODY).raise_for_status()
    return {"wait": wait, "wake": woken, "warm": time.perf_counter() - again}


def run_all(http: httpx.Client) -> dict[str, Any]:
    found: dict[tuple[float, bool], list[dict[str, float]]] = {}
    for _ in range(RUNS):
        for typed in TYPED:
            for wakes in (False, True):
                found.setdefault((typed, wakes), []).append(measure(http, typed, wakes))

    def median(name: str, typed: float, wakes: bool) -> float:
        return statistics.median(run[name] for run in found[typed, wakes])

    every = [run for runs in found.values() for run in runs]
    # A request to a running replica, and not the second one after a start: the first runs warm it up.
    warm = statistics.median(run["warm"] for run in every)
    cold = statistics.median(median("wait", typed, False) for typed in TYPED)
    rows = [
        {
            "typed_s": typed,
            "without_s": round(median("wait", typed, False), 3),
            "with_s": round(median("wait", typed, True), 3),
            "expected_s": round(max(0.0, cold - typed - warm) + warm, 3),
        }
        for typed in TYPED
    ]
    wake = statistics.median(run["wake"] for (_, wakes), runs in found.items() if wakes for run in runs)
    return {"cold_s": round(cold, 3), "warm_s": round(warm, 3), "wake_ms": round(1000 * wake, 1), "rows": rows}


def write(result: dict[str, Any]) -> None:
    lines = [
        "| typed for | without wake | with wake | max(0, cold start - typed) + warm |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['typed_s']} s | {row['without_s']:.2f} s | {row['with_s']:.2f} s | {row['expected_s']:.2f} s |"
        for row in result["rows"]
    ]
    (HERE / "wake.md").write_text("\n".join(lines) + "\n", "utf-8")
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for name, label in (("without_s", "without wake"), ("with_s", "wake when the page opens")):
        axes.plot(TYPED, [row[name] for row in result["rows"]], marker="o", label=label)
    axes.set(xlabel="seconds that the visitor types", ylabel="seconds of wait", ylim=0)
    axes.set_title("The wait after pressing the button")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(HERE / "wake.png", dpi=120)


def main() -> None:
    python = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as temporary:
        project = cookiecutter(str(HERE.parent), no_input=True, output_dir=temporary, extra_context={"preset": "sd15"})
        # As the README of the project says to who uses wake: the warm-up passes before the visitor asks, too.
        config = Path(project) / "config.yaml"
        config.write_text(config.read_text("utf-8").replace("warm_up: false", "warm_up: true"), "utf-8")
        command = [str(python), str(HERE.parent / "tests" / "fake_baseten.py"), project, temporary]
        log = (Path(temporary) / "log").open("w")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ)
        try:
            port = process.stdout.readline().strip()
            # A new connection each time: the platform closes one on which the visitor was silent for 5 s.
            transport = httpx.HTTPTransport(retries=5, limits=httpx.Limits(max_keepalive_connections=0))
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", timeout=600, headers=KEY, transport=transport
            ) as http:
                # The first start reads everything from disk: it is not counted.
                measure(http, 0, False)
                result = run_all(http)
        finally:
            process.terminate()
            process.wait(timeout=60)
    write(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

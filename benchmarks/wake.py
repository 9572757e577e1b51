"""Measure what wake is for: the wait after pressing the button, with and without a wake when the page opens.

    python benchmarks/wake.py PROJECT_PYTHON

A visitor types for T seconds. "warm" is the wait of the next visitor, who types as long: a request after a pause
can be slower than one right after another. The platform is tests/fake_baseten.py with the real local Truss server
on a tiny pipeline. Runs alternate; the numbers are medians. Writes benchmarks/wake.png and benchmarks/wake.md, and
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
RUNS = 15
# What a visitor sends who changes nothing: the project's own size and steps.
BODY = {"prompt": "a boat", "seed": 1}
KEY = {"Authorization": "Api-Key good-key"}


def press(http: httpx.Client) -> float:
    """Ask for an image. Return the seconds until it is there."""
    pressed = time.perf_counter()
    http.post("/model-model/production/predict", json=BODY).raise_for_status()
    return time.perf_counter() - pressed


def without_wake(http: httpx.Client, typed: float) -> float:
    """Return the wait after pressing, in seconds."""
    http.post("/_platform", json={"scale_to_zero": True}).raise_for_status()
    time.sleep(typed)
    return press(http)


def with_wake(http: httpx.Client, typed: float) -> dict[str, float]:
    """Return seconds: of the wake request, of the wait after pressing the button, and of the next visitor's wait."""
    http.post("/_platform", json={"scale_to_zero": True}).raise_for_status()
    opened = time.perf_counter()
    http.post("/model-model/production/wake").raise_for_status()
    woken = time.perf_counter() - opened
    time.sleep(max(0.0, typed - woken))
    wait = press(http)
    time.sleep(typed)
    return {"wake": woken, "wait": wait, "warm": press(http)}


def run_all(http: httpx.Client) -> dict[float, list[dict[str, float]]]:
    found: dict[float, list[dict[str, float]]] = {typed: [] for typed in TYPED}
    for _ in range(RUNS):
        for typed in TYPED:
            without = without_wake(http, typed)
            found[typed].append({"without": without, **with_wake(http, typed)})
    return found


def summarize(found: dict[float, list[dict[str, float]]]) -> dict[str, Any]:
    """Return medians. ratio: of each wait to what its own run would lead to expect, in the same process."""
    every = [run for runs in found.values() for run in runs]
    # Without a wake the start begins with the request, whatever time the visitor typed.
    cold_start = statistics.median(run["without"] - run["warm"] for run in every)

    def row(typed: float) -> dict[str, float]:
        runs = found[typed]
        seconds = {name: statistics.median(run[name] for run in runs) for name in ("without", "wait", "warm")}
        rest = max(0.0, cold_start - typed)
        ratio = statistics.median(run["wait"] / (rest + run["warm"]) for run in runs)
        return {"typed": typed, **seconds, "expected": rest + seconds["warm"], "ratio": ratio}

    return {
        "wake_ms": round(1000 * statistics.median(run["wake"] for run in every), 1),
        "cold_start": round(cold_start, 3),
        "rows": [{name: round(value, 3) for name, value in row(typed).items()} for typed in found],
        "runs": found,
    }


def write(result: dict[str, Any]) -> None:
    rows = result["rows"]
    columns = ("without", "wait", "warm", "expected")
    lines = [
        "| typed for | without wake | with wake | warm | max(0, cold start - typed) + warm | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {row['typed']} s | " + " | ".join(f"{row[name]:.2f} s" for name in columns) + f" | {row['ratio']:.2f} |"
            for row in rows
        ),
    ]
    (HERE / "wake.md").write_text("\n".join(lines) + "\n", "utf-8")
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for name, label in (("without", "without wake"), ("wait", "wake when the page opens")):
        axes.plot(TYPED, [row[name] for row in rows], marker="o", label=label)
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
                without_wake(http, 0)
                result = summarize(run_all(http))
        finally:
            process.terminate()
            process.wait(timeout=60)
    write(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

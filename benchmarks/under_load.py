"""Measure how soon the server answers health checks while requests run and hostile ones are refused.

    python benchmarks/under_load.py PROJECT_PYTHON

The real local server of the default project, on its tiny pipeline. Health and readiness are asked every 20 ms. Then, as
there is no GPU here, a device is imitated: an image of 1024 px takes DEVICE_SECONDS in which the CPU is idle, and is
encoded for real: what predict_concurrency 2 gives where encoding leaves the device idle. It prints two tables.
"""

import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml
from cookiecutter.main import cookiecutter
from PIL import Image

TEMPLATE = Path(__file__).resolve().parent.parent
PREDICT, HEALTH, READY = "/v1/models/model:predict", "/v1/models/model", "/v1/models/model/loaded"
SMALL = {"prompt": "a boat", "num_inference_steps": 2, "width": 64, "height": 64}
ROUNDS = 5
DEVICE_SECONDS = (0.2, 1.0, 3.0)
IMAGES = 12
# Put after model.py in a copy of the app: the pipeline is an image of noise that is ready after some time.
IMITATION = """

def _imitated(self, asked, seed, left):
    import numpy
    time.sleep(float(asked["prompt"]))
    floats = numpy.random.default_rng(seed).random((1, 1024, 1024, 3), dtype="float32")
    return self._pipeline.image_processor.numpy_to_pil(floats)[0]

Model._generate = _imitated
"""


# Runs in the project's environment, and prints where the server is. It ends with standard input.
SERVE = """
import subprocess, sys
from pathlib import Path
import local_server

port = local_server.free_port()
process = local_server.start(Path(sys.argv[1]), port, stdout=sys.stderr)
try:
    local_server.wait_until_ready(process, f"http://127.0.0.1:{port}")
    print(f"http://127.0.0.1:{port}", flush=True)
    sys.stdin.read()
finally:
    local_server.stop(process)
"""


def png(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 80).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def many_scans(count: int) -> str:
    """Return a progressive JPEG of 4096 px whose last scan is repeated."""
    buffer = io.BytesIO()
    Image.new("RGB", (4096, 4096)).save(buffer, "JPEG", progressive=True)
    file = buffer.getvalue()
    last = file.rindex(b"\xff\xda")
    return base64.b64encode(file[:last] + file[last:-2] * count + file[-2:]).decode()


def traffic() -> dict[str, list[bytes]]:
    """Return the bodies that are sent at once, by what they are."""
    flood = json.dumps({**SMALL, **{f"k{i}": 0 for i in range(800_000)}}).encode()
    images = [{**SMALL, "image": png(3000, 2400), "strength": 1.0} for _ in range(8)]
    scans = {**SMALL, "image": many_scans(500), "strength": 1.0}
    return {
        "nothing": [],
        "8 images of 7 megapixels": [json.dumps(body).encode() for body in images],
        "a JPEG of 500 scans": [json.dumps(scans).encode()],
        "800,000 unknown fields": [flood] * 4,
        "13 MB that are no image": [json.dumps({**SMALL, "image": "A" * 13_000_000}).encode()] * 4,
        "45 requests": [json.dumps(SMALL).encode()] * 45,
    }


@contextmanager
def served(python: str, project: Path, app: Path, concurrency: int, imitated: bool) -> Iterator[str]:
    """Yield the URL of the project's server. app: a folder that is not there yet."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    code = "import local_server as s, sys; from pathlib import Path as P; s.build_app(P(sys.argv[1]), P(sys.argv[2]))"
    weights = app.parent / "weights"
    if not weights.exists():
        subprocess.run([python, "tiny/make.py", weights], cwd=project, env=environment, check=True)
    subprocess.run([python, "-c", code, app, weights], cwd=project, env=environment, check=True)
    config = yaml.safe_load((app / "config.yaml").read_text("utf-8"))
    config["runtime"]["predict_concurrency"] = concurrency
    (app / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    if imitated:
        with (app / "model" / "model.py").open("a") as model:
            model.write(IMITATION)
    with (app.parent / f"{app.name}.log").open("w") as log:
        command = [python, "-c", SERVE, app]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
        process = subprocess.Popen(command, cwd=project, env=environment, **pipes)
        try:
            yield process.stdout.readline().strip()
        finally:
            process.communicate()


def waits(url: str, bodies: list[bytes]) -> tuple[list[float], list[int]]:
    """Send the bodies at once. Return how long each health check took meanwhile, and the statuses of the answers."""
    seconds: list[float] = []
    # In a process of its own: what it does must not hold up the one that measures.
    with ProcessPoolExecutor(1) as process, httpx.Client(base_url=url, timeout=300) as http:
        answers = process.submit(post_at_once, url, bodies)
        ends = time.perf_counter() + 2
        while not answers.done() or time.perf_counter() < ends:
            for path in (HEALTH, READY):
                started = time.perf_counter()
                http.get(path)
                seconds.append(time.perf_counter() - started)
            time.sleep(0.02)
    return seconds, answers.result()


def post_at_once(url: str, bodies: list[bytes]) -> list[int]:
    with ThreadPoolExecutor(max(len(bodies), 1)) as pool:
        return list(pool.map(lambda body: post(url, body), bodies))


def post(url: str, body: bytes) -> int:
    return httpx.post(url + PREDICT, content=body, timeout=300).status_code


def images_a_minute(url: str, seconds: float) -> float:
    """Return how many images come out when two requests are always waiting."""
    body = json.dumps({"prompt": str(seconds)}).encode()
    started = time.perf_counter()
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda _: post(url, body), range(IMAGES))) == {200}
    return 60 * IMAGES / (time.perf_counter() - started)


def main() -> None:
    """Print both tables."""
    python = str(Path(sys.argv[1]).absolute())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        project = Path(cookiecutter(str(TEMPLATE), no_input=True, output_dir=folder))
        print("| while the server gets | answers | health, median ms | health, most ms |\n| --- | --- | --- | --- |")
        with served(python, project, folder / "app", 1, imitated=False) as url:
            for name, bodies in traffic().items():
                rounds = [waits(url, bodies) for _ in range(ROUNDS)]
                seconds = [each for found, _ in rounds for each in found]
                statuses = sorted({status for _, found in rounds for status in found})
                shown = ", ".join(map(str, statuses)) or "-"
                print(f"| {name} | {shown} | {1000 * statistics.median(seconds):.1f} | {1000 * max(seconds):.0f} |")
        print("\n| device takes | images a minute, predict_concurrency 1 | 2 |\n| --- | --- | --- |")
        with (
            served(python, project, folder / "one", 1, imitated=True) as one,
            served(python, project, folder / "two", 2, imitated=True) as two,
        ):
            for seconds in DEVICE_SECONDS:
                found = [(images_a_minute(one, seconds), images_a_minute(two, seconds)) for _ in range(3)]
                alone, both = (statistics.median(each) for each in zip(*found, strict=True))
                print(f"| {seconds} s | {alone:.0f} | {both:.0f} |")


if __name__ == "__main__":
    main()

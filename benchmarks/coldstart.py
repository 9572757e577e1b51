"""Measure cold starts of the real local Truss server on full-size random weights, phase by phase.

    python benchmarks/coldstart.py PROJECT_PYTHON CACHE [--models sdxl sd15] [--runs 5] [--levers]

PROJECT_PYTHON holds what the image holds; CACHE keeps the weights. Our model runs in alternation with the three
ways of baseline_model.py and with the floor. --levers measures what each lever gives instead, one left out at a
time. Writes the tables and charts beside this file; the last line that it prints is one JSON object.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import yaml
from cookiecutter.main import cookiecutter

HERE = Path(__file__).resolve().parent
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
# One step of a small image: the first image is part of a cold start, and a CPU is slow.
REQUEST = {"prompt": "a boat", "num_inference_steps": 1, "width": 64, "height": 64, "seed": 0}
BASELINES = ("naive", "examples", "device_map")
# What is changed in a copy of the emitted model to leave one lever out.
LEVERS = {
    "read before the server": [("model/python_startup/sitecustomize.py", '.endswith("main.py")', " == None")],
    "read ahead": [("model/model.py", "faststart.read_ahead(", "(lambda folder: None)(")],
    "list of imported files": [("model/faststart.py", "if IMPORTED_FILES.is_file() else []", "if False else []")],
    "a process of its own": [
        ("model/faststart.py", "target=subprocess.run, args=(command,)", "target=read_all, args=(folder,)")
    ],
    "sendfile in place of read": [
        (
            "model/faststart.py",
            r"                offset = 0\n.*?offset \+= sent\n",
            "                while stream.read(2**24):\n                    pass\n",
        )
    ],
    "no garbage collection": [("model/model.py", ", faststart.without_garbage_collection()", "")],
    "straight to the device": [("model/pipeline.py", r'        "device_map": .*?\n', "")],
}
IMPORTS = """
import gc, json, os, sys
gc.disable()
import truss_server, torch, diffusers
getattr(diffusers, sys.argv[1])
print("done", flush=True)
maps = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
caches = {module.__spec__.cached for module in list(sys.modules.values()) if getattr(module, "__spec__", None)}
files = sorted(file for file in maps | caches - {None} if os.path.isfile(file))
json.dump(files, open(sys.argv[2], "w"))
os._exit(0)
"""
READ = """
import os, sys
nowhere = os.open(os.devnull, os.O_WRONLY)
for file in sys.argv[1:]:
    with open(file, "rb", buffering=0) as stream:
        offset = 0
        while sent := os.sendfile(nowhere, stream.fileno(), offset, 2**30):
            offset += sent
print("done", flush=True)
os._exit(0)
"""


@dataclasses.dataclass
class Subject:
    """One thing to measure. app: the server's folder; python: its interpreter."""

    name: str
    app: Path
    python: Path


@dataclasses.dataclass
class Run:
    """Seconds from the start of the process, peak memory in GB, and the phases as the model logged them."""

    ready_s: float
    first_image_s: float
    peak_gb: float
    phases: dict[str, float]


def prepare(model: str, python: Path, cache: Path) -> Path:
    """Make the weights once, each as its deployers name the files. Returns their folder."""
    weights = cache / model
    if not (weights / "plain").is_dir():
        subprocess.run([python, HERE / "full_size_weights.py", model, weights / "pipeline"], check=True)
        # The default project takes its VAE from a repository of its own: here from the same bytes.
        link_files(weights / "pipeline" / "vae", weights / "vae")
        link_files(weights / "pipeline", weights / "plain")
    return weights


def link_files(source: Path, target: Path) -> None:
    """Link every file, without `.fp16` in its name."""
    for file in source.rglob("*"):
        if file.is_file():
            link = target / str(file.relative_to(source)).replace(".fp16", "")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())


def without_bytecode(python: Path, cache: Path) -> Path:
    """Copy the environment as hard links, as an image without the build command has it. Returns its python."""
    source, copy = python.parent.parent, cache / "no-bytecode"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy, symlinks=True, copy_function=os.link, ignore=shutil.ignore_patterns("__pycache__"))
    return copy / "bin" / python.name


def build_app(model: str, python: Path, weights: Path, folder: Path) -> Path:
    """Emit the project of a preset and lay out its server, compiled as its build command does."""
    project = Path(cookiecutter(str(HERE.parent), no_input=True, output_dir=folder, extra_context={"preset": model}))
    app = folder / "ours"
    code = "import local_server, pathlib, sys; local_server.build_app(*map(pathlib.Path, sys.argv[1:]))"
    subprocess.run([python, "-c", code, app, weights], cwd=project, check=True)
    # As on a GPU: half precision.
    edit_config(app, lambda config: config["model_metadata"]["pipeline"].update(cpu_dtype="float16"))
    for module in (["compileall", "-q", "."], ["model.faststart", "record", class_of(app)]):  # as build_commands do
        subprocess.run([python, "-m", *module], cwd=app, check=True)
    return app


def class_of(app: Path) -> str:
    config = yaml.safe_load((app / "config.yaml").read_text("utf-8"))
    return config["model_metadata"]["pipeline"]["class_name"]


def edit_config(app: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = yaml.safe_load((app / "config.yaml").read_text("utf-8"))
    change(config)
    (app / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")


def copy_app(app: Path, name: str) -> Path:
    return Path(shutil.copytree(app, app.parent / name, ignore=shutil.ignore_patterns("context", "__pycache__")))


def baseline(app: Path, name: str) -> Path:
    """The same server with the model of baseline_model.py, and no bytecode of either."""
    copy = copy_app(app, name)
    shutil.rmtree(copy / "model")
    (copy / "model").mkdir()
    shutil.copy(HERE / "baseline_model.py", copy / "model" / "model.py")
    edit_config(copy, lambda config: config["model_metadata"].update(baseline=name))
    return copy


def without_lever(app: Path, name: str, python: Path) -> Path:
    copy = copy_app(app, name.replace(" ", "-"))
    for file, old, new in LEVERS[name]:
        text = (copy / file).read_text("utf-8")
        changed = re.sub(old if "\\n" in old else re.escape(old), lambda _, new=new: new, text, flags=re.DOTALL)
        if changed == text:
            sys.exit(f"The lever {name!r} is not in {file} any more: correct LEVERS.")
        (copy / file).write_text(changed, "utf-8")
    subprocess.run([python, "-m", "compileall", "-q", copy], check=True)
    return copy


def set_page_cache(state: str, files: list[Path]) -> None:
    """cold: nothing of the disk is in memory. warm: the weights are, and what the last run left."""
    os.sync()
    if state == "warm":
        run_and_wait(read_command(files))
    elif os.access(DROP_CACHES, os.W_OK):
        DROP_CACHES.write_text("3")
    else:
        sys.exit("The page cache cannot be dropped: run as root for the cold state, or pass --states warm.")


def read_command(files: list[Path]) -> list[Any]:
    """Read every byte of files once, in order, without a copy."""
    return [sys.executable, "-S", "-c", READ, *files]


def run_and_wait(command: list[Any], cwd: Path | None = None) -> float:
    """Return the seconds until the process prints its first line."""
    started = time.perf_counter()
    with subprocess.Popen([str(part) for part in command], cwd=cwd, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
    if process.returncode or line != "done\n":
        sys.exit(f"{command[0]} ended with {process.returncode}.")
    return seconds


def start(subject: Subject, files: list[Path], port: int) -> Run:
    """One cold start of the server, until it is ready and has read files, and then its first image."""
    environment = {
        **os.environ,
        "INFERENCE_SERVER_PORT": str(port),
        "HOME": str(subject.app),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(subject.app / "model" / "python_startup"),
        "TQDM_DISABLE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    log = subject.app / "server.log"
    started = time.perf_counter()
    with log.open("w") as output:
        command = [str(subject.python), "main.py"]
        process = subprocess.Popen(
            command,
            cwd=subject.app,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}/v1/models/model"
        while not answers(f"{url}/loaded"):
            if process.poll() is not None:
                sys.exit(f"{subject.name} ended before it was ready:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)  # more often, and the answers to this would slow the imports down
        # A CPU maps the files: what load() did not touch is still on the disk, and a GPU would have read it.
        run_and_wait(read_command(files))
        ready = time.perf_counter() - started
        urllib.request.urlopen(f"{url}:predict", json.dumps(REQUEST).encode(), timeout=1200).read()
        first_image = time.perf_counter() - started
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())[1])
    finally:
        # With the process that reads ahead, so that the next start has the disk for itself.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
    return Run(ready, first_image, peak * 1024 / 1e9, logged_phases(log.read_text()))


def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(url, timeout=5).status == 200
    return False


def logged_phases(log: str) -> dict[str, float]:
    """Return the phases of the log's first cold_start line. Truss puts the model's line into a line of its own."""
    line = next(line for line in log.splitlines() if "cold_start" in line)
    record = json.loads(line)
    return json.loads(record["message"])["seconds"] if "message" in record else record["seconds"]


def floor(app: Path, python: Path, class_name: str, files: list[Path], state: str) -> dict[str, float]:
    """Nothing starts faster: everything imported, or every byte read once, whichever takes longer. Seconds, GB."""
    loaded = app / "loaded.json"
    set_page_cache(state, files)
    imports = run_and_wait([python, "-c", IMPORTS, class_name, loaded], cwd=app)
    library = resident_bytes(json.loads(loaded.read_text()))
    weights = sum(file.stat().st_size for file in files)
    set_page_cache(state, files)
    read = run_and_wait(read_command(files))
    everything = read * (weights + library) / weights
    return {"imports_s": imports, "read_s": read, "library_gb": library / 1e9, "floor_s": max(imports, everything)}


def resident_bytes(files: list[str]) -> int:
    """Return how many bytes of files are in the page cache: after a cold run, what it read of them."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", *files]
    return sum(map(int, subprocess.check_output(command, text=True).split()))


def measure(model: str, python: Path, cache: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    weights = prepare(model, python, cache)
    files = sorted((weights / "pipeline").rglob("*.safetensors"))
    folder = cache / "apps" / model
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    app = build_app(model, python, weights, folder)
    class_name = class_of(app)
    bare = without_bytecode(python, cache)
    subjects = [Subject("ours", app, python)]
    if arguments.levers:
        subjects += [Subject(name, without_lever(app, name, python), python) for name in LEVERS]
        subjects.append(Subject("bytecode", copy_app(app, "bytecode"), bare))
        warm_up = copy_app(app, "warm-up")
        # Of the size of REQUEST: a large one takes minutes on a CPU.
        small = {
            "warm_up": True,
            "defaults": {"num_inference_steps": 1, "guidance_scale": 5.0, "width": 64, "height": 64},
        }
        edit_config(warm_up, lambda config: config["model_metadata"]["pipeline"].update(small))
        subprocess.run([python, "-m", "compileall", "-q", warm_up], check=True)
        subjects.append(Subject("warm_up on", warm_up, python))
    else:
        subjects += [Subject(name, baseline(app, name), bare) for name in BASELINES]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    found: dict[str, Any] = {"weights_gb": sum(file.stat().st_size for file in files) / 1e9}
    for state in arguments.states:
        runs: dict[str, list[Run]] = {subject.name: [] for subject in subjects}
        floors = []
        set_page_cache(state, files)
        start(subjects[0], files, port)  # not counted: after a pause the disk itself may be slow
        for number in range(arguments.runs):
            for subject in subjects:
                if subject.name == "naive" and number >= arguments.naive:
                    continue
                set_page_cache(state, files)
                runs[subject.name].append(start(subject, files, port))
                print(f"{model} {state} {number + 1} {subject.name}: {runs[subject.name][-1]}", file=sys.stderr)
            floors.append(floor(app, python, class_name, files, state))
            print(f"{model} {state} {number + 1} floor: {floors[-1]}", file=sys.stderr)
        found[state] = {
            "runs": {name: [dataclasses.asdict(run) for run in each] for name, each in runs.items()},
            "floors": floors,
        }
    return found


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) / 1e6
    name = model[1] if model else platform.machine()
    gpu = "no GPU"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpu = subprocess.check_output(query, text=True).strip()
    return f"{os.cpu_count()} cores of {name}, {memory:.0f} GB of memory, {gpu}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=lambda text: Path(text).absolute(), metavar="PROJECT_PYTHON")
    parser.add_argument("cache", type=lambda text: Path(text).absolute(), metavar="CACHE")
    parser.add_argument("--models", nargs="+", choices=("sdxl", "sd15"), default=("sdxl", "sd15"))
    parser.add_argument("--states", nargs="+", choices=("cold", "warm"), default=("cold", "warm"))
    parser.add_argument("--runs", type=int, default=5, help="Of each, in alternation. Default: 5.")
    parser.add_argument(
        "--levers", action="store_true", help="Leave out one lever at a time, in place of the baselines."
    )
    parser.add_argument(
        "--naive", type=int, default=5, help="In how many runs naive takes part: it is slow. Default: 5."
    )
    arguments = parser.parse_args()
    found = {model: measure(model, arguments.python, arguments.cache, arguments) for model in arguments.models}
    found["machine"] = machine()
    (arguments.cache / ("levers.json" if arguments.levers else "coldstart.json")).write_text(json.dumps(found))
    report.write(found, HERE, arguments.levers)


if __name__ == "__main__":
    main()

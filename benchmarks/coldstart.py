"""Measure cold starts of the real image on full-size random weights, phase by phase.

    python benchmarks/coldstart.py CACHE [--models sdxl sd15] [--states cold warm limited] [--runs 5] [--levers]

The image is built from the Dockerfile that Truss writes (tests/image/container.py), with CUDA's libraries, and its
server started in it. Ours runs in alternation with the three ways of baseline_model.py, whose image has no build
commands, and with the floor. --levers measures what each lever gives instead, one left out at a time. Needs root.
Writes the tables and charts beside this file; the last line that it prints is one JSON object.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import report
import yaml
from cookiecutter.main import cookiecutter

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "image"))
import container  # noqa: E402
from container import Container  # noqa: E402

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
# One step of a small image: the first image is part of a cold start, and a CPU is slow.
REQUEST = {"prompt": "a boat", "num_inference_steps": 1, "width": 64, "height": 64, "seed": 0}
# Half precision takes minutes on a CPU with sd15's attention, and means nothing there.
WITH_FIRST_IMAGE = ("sdxl",)
BASELINES = ("naive", "examples", "device_map")
STATES = ("cold", "warm", "limited")
LIMIT = 300_000_000  # bytes that the limited state reads in a second, as a network disk does
IMPORTS = """
import gc, json, os, sys
gc.disable()
import truss_server, torch, diffusers
getattr(diffusers, sys.argv[1])
print("done", flush=True)
maps = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
caches = {module.__spec__.cached for module in list(sys.modules.values()) if getattr(module, "__spec__", None)}
files = sorted(file for file in maps | caches - {None} if os.path.isfile(file))
json.dump(files, open("/tmp/loaded.json", "w"))
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
class Run:
    """Seconds from the start of the process, peak memory in GB, and the phases as the model logged them."""

    ready_s: float
    first_image_s: float | None
    peak_gb: float
    phases: dict[str, float]


@dataclasses.dataclass
class Weights:
    """The folder that is mounted as the cache, and the files that a GPU would read all of."""

    folder: Path
    files: list[Path]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


# --- Images and weights


def build_images(model: str, cache: Path) -> tuple[str, str]:
    """Build the emitted project's image, and that of the baselines. Returns their names."""
    project = emit(model, cache)
    names = f"fast-truss-{model}", f"fast-truss-{model}-baseline"
    other = cache / "projects" / f"{model}-baseline"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(project, other)
    # As deployers have it: Truss's image as it is installed, without bytecode.
    edit(other / "config.yaml", lambda config: config.update(build_commands=[]))
    shutil.rmtree(other / "model")
    (other / "model").mkdir()
    shutil.copy(HERE / "baseline_model.py", other / "model" / "model.py")
    # packages/ stays: local_server.py checks config.yaml with it. The baselines do not import it.
    for folder, name in zip((project, other), names, strict=True):
        build_image(folder, name, cache)
    return names


def build_image(project: Path, name: str, cache: Path) -> None:
    """Build the image of a project from the Dockerfile that Truss writes."""
    context = cache / "contexts" / name
    shutil.rmtree(context, ignore_errors=True)
    subprocess.run([sys.executable, "local_server.py", "--context", context], cwd=project, check=True)
    print(f"building {name}", file=sys.stderr)
    container.build(context, name, HERE.parent / "build" / "image", context.with_suffix(".log"))


def emit(model: str, cache: Path) -> Path:
    """Emit the project of a preset and return its folder."""
    options = {"no_input": True, "overwrite_if_exists": True, "output_dir": cache / "projects"}
    answers = {"preset": model, "model_name": model}
    return Path(cookiecutter(str(HERE.parent), extra_context=answers, **options))


def make_weights(model: str, image: str, cache: Path, tiny: bool) -> Weights:
    """Make the weights once, with what the image holds, each as its deployers name the files."""
    folder = cache / (f"{model}-tiny" if tiny else model)
    if not (folder / "plain").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        mounts = {HERE: "/benchmarks", cache / "projects" / model: "/project"}
        command = ["/project/tiny/make.py", "/weights"]
        if not tiny:
            command = ["/benchmarks/full_size_weights.py", model, "/weights/pipeline"]
        with container.container(image) as box:
            subprocess.run(box.command("python3", *command, mounts=mounts, writable={folder: "/weights"}), check=True)
        # The default project takes its VAE from a repository of its own: here from the same bytes.
        if not (folder / "vae").is_dir():
            link_files(folder / "pipeline" / "vae", folder / "vae")
        if not (folder / "pipeline" / "vae").is_dir():
            link_files(folder / "vae", folder / "pipeline" / "vae", ".fp16")
        link_files(folder / "pipeline", folder / "plain")
    return Weights(folder, sorted((folder / "pipeline").rglob("*.safetensors")))


def link_files(source: Path, target: Path, variant: str = "") -> None:
    """Link every file, with variant before .safetensors in place of `.fp16`."""
    for file in source.rglob("*"):
        if file.is_file():
            name = str(file.relative_to(source)).replace(".fp16", "").replace(".safetensors", f"{variant}.safetensors")
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target / name)


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a YAML or JSON file."""
    load, dump = (json.loads, json.dumps) if file.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    content = load(file.read_text("utf-8"))
    change(content)
    file.write_text(dump(content), "utf-8")


# --- What is changed in a container of our image to leave one lever out


def replace(file: str, old: str, new: str) -> Callable[[Container], None]:
    def change(box: Container) -> None:
        path = box.root / file
        text = path.read_text("utf-8")
        if text.count(old) != 1:
            sys.exit(f"{old!r} is not in {file} once any more: correct LEVERS.")
        path.write_text(text.replace(old, new), "utf-8")

    return change


def change_record(change: Callable[[list], list]) -> Callable[[Container], None]:
    def apply(box: Container) -> None:
        edit(box.root / RECORD, lambda record: record.update(phases=change(record["phases"])))

    return apply


def whole(phases: list) -> list:
    """Libraries as a whole."""
    files = {file: None for phase in phases for file, _, _ in phase if ".so" in file}
    # In pieces, as a part is read in one go. What is behind a library's end costs nothing.
    return [[[file, start, start + 2**26] for file in files for start in range(0, 2**31, 2**26)], *small(phases)]


def small(phases: list) -> list:
    return [[part for part in phase if ".so" not in part[0]] for phase in phases]


def remove(*patterns: str) -> Callable[[Container], None]:
    def change(box: Container) -> None:
        found = [path for pattern in patterns for path in box.root.glob(pattern)]
        if not found:
            sys.exit(f"{patterns} are not in the image any more: correct LEVERS.")
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


PACKAGES = "usr/**/*-packages"
RECORD = "packages/cold_start/imported_files.json"
PHASES = "packages/cold_start/phases.py"
READ_AHEAD = "packages/cold_start/read_ahead.py"
EARLY = f"{PACKAGES}/read_ahead.pth"
LEVERS: dict[str, Callable[[Container], None]] = {
    "bytecode compiled at build": remove(f"{PACKAGES}/**/__pycache__", "app/**/__pycache__", "packages/**/__pycache__"),
    "reading ahead": lambda box: (
        remove(EARLY)(box),
        replace("app/model/model.py", "read_ahead.begin(", "(lambda weights: print)(")(box),
    ),
    "reading the weights ahead": replace(READ_AHEAD, "    _read_weights(json", "    (json"),
    "more readers once the imports are done": replace(READ_AHEAD, "WEIGHT_READERS = 4", "WEIGHT_READERS = 1"),
    "reading ahead what the imports read": remove(RECORD),
    "reading before the server": remove(EARLY),
    "ranges: libraries as a whole": change_record(whole),
    "parts alone: the kernel reads ahead of them": replace(READ_AHEAD, "os.POSIX_FADV_RANDOM", "0"),
    "libraries: small files alone": change_record(small),
    "no garbage collection during the imports": replace(PHASES, "    gc.disable()", "    pass"),
    "imports without the compiler": replace("app/model/model.py", "plainly=bool(settings.compile)", "plainly=True"),
    "names of transformers kept at build": remove("usr/transformers_names"),
    "sendfile to `/dev/null`: read into a buffer": replace(
        READ_AHEAD,
        "sent := os.sendfile(nowhere.fileno(), stream.fileno(), start, end - start)",
        "sent := len(os.pread(stream.fileno(), min(end - start, 2**20), start))",
    ),
}


# --- Runs


@contextlib.contextmanager
def subjects(model: str, images: tuple[str, str], levers: bool) -> Iterator[dict[str, Container]]:
    """Yield a container for each subject, by name."""

    def settle(box: Container) -> None:
        # As on a GPU: half precision.
        edit(
            box.root / "app" / "config.yaml",
            lambda config: config["model_metadata"]["pipeline"].update(cpu_dtype="float16"),
        )

    with contextlib.ExitStack() as stack:

        def start(image: str, **variables: str) -> Container:
            # A replica is new, so what one run compiled must not help the next.
            return stack.enter_context(container.container(image, PYTHONDONTWRITEBYTECODE="1", **variables))

        # local_server.py puts these into the environment too: Baseten does it when it starts the container.
        variables = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
        boxes = {"ours": start(images[0], **variables)}
        settle(boxes["ours"])
        for name in () if levers else BASELINES:
            boxes[name] = start(images[1], **variables)
            file = boxes[name].root / "app" / "config.yaml"
            edit(file, lambda config, name=name: config["model_metadata"].update(baseline=name))
        for name in LEVERS if levers else ():
            boxes[name] = start(images[0], **variables)
            settle(boxes[name])
            LEVERS[name](boxes[name])
            if "bytecode" not in name:
                flags = ["-q", "-f", "--invalidation-mode", "checked-hash", "/app/model", "/packages"]
                boxes[name].run("env", "-u", "PYTHONDONTWRITEBYTECODE", "python3", "-m", "compileall", *flags)
        yield boxes


def set_page_cache(state: str, files: list[Path]) -> None:
    """cold and limited: nothing of the disk is in memory. warm: the weights are, and what the last run left."""
    os.sync()
    if state == "warm":
        run_and_wait(read_command(files))
    else:
        DROP_CACHES.write_text("3")


def read_command(files: list[Path]) -> list[Any]:
    """Read every byte of files once, in order, without a copy."""
    return [sys.executable, "-S", "-c", READ, *files]


def run_and_wait(command: list[Any], **options: Any) -> float:
    """Return the seconds until the process prints its first line."""
    started = time.perf_counter()
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, **options) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
    if process.returncode or line != "done\n":
        sys.exit(f"{command[0]} ended with {process.returncode}.")
    return seconds


@contextlib.contextmanager
def cgroup(state: str) -> Iterator[list[str]]:
    """Yield what a command begins with to run under the limit of reads, in the limited state."""
    if state != "limited":
        yield []
        return
    v1 = Path("/sys/fs/cgroup/blkio")
    folder = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / "fast-truss-bench"
    folder.mkdir(exist_ok=True)
    device = os.stat("/var/lib/containers").st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    block = block.parent if (block / "partition").exists() else block  # a partition has no limit of its own
    number = (block / "dev").read_text("utf-8").strip()
    try:
        if v1.is_dir():
            (folder / "blkio.throttle.read_bps_device").write_text(f"{number} {LIMIT}")
        else:
            Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+io")
            (folder / "io.max").write_text(f"{number} rbps={LIMIT}")
        yield into_cgroup(folder)
    finally:
        remove_cgroup(folder)


def remove_cgroup(folder: Path) -> None:
    for _ in range(100):  # what ran in it may still be on its way out
        with contextlib.suppress(OSError):
            return folder.rmdir()
        time.sleep(0.1)


def into_cgroup(folder: Path) -> list[str]:
    """Return what a command begins with to run in the cgroup."""
    return ["sh", "-c", f'echo $$ > {folder}/cgroup.procs; exec "$@"', "sh"]


@contextlib.contextmanager
def ready(box: Container, weights: Path, before: list[str]) -> Iterator[tuple[float, str, subprocess.Popen]]:
    """Start the server, and yield when it is ready: when it was started, its address, and its process.

    before: what its command begins with. Its log is log_of(box).
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {**box.environment, "INFERENCE_SERVER_PORT": str(port)}
    command = [*before, *box.command(mounts={weights: "/app/model_cache"})]
    started = time.perf_counter()
    with log_of(box).open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}/v1/models/model"
        while not answers(f"{url}/loaded"):
            if process.poll() is not None:
                sys.exit(f"The server ended before it was ready:\n{log_of(box).read_text()[-3000:]}")
            time.sleep(0.1)  # more often, and the answers to this would slow the imports down
        yield started, url, process
    finally:
        container.stop(process)  # with all that it started: the next start has the disk for itself


def log_of(box: Container) -> Path:
    return box.root / "tmp" / "server.log"


def start(box: Container, weights: Weights, state: str, first_image: bool) -> Run:
    """One cold start of the server, until it is ready and has read all weights, and then its first image."""
    with cgroup(state) as limited, ready(box, weights.folder, limited) as (started, url, process):
        # A CPU maps the files: what load() did not touch is still on the disk, and a GPU would have read it.
        run_and_wait(read_command(weights.files))
        seconds = time.perf_counter() - started
        first = None
        if first_image:
            urllib.request.urlopen(f"{url}:predict", json.dumps(REQUEST).encode(), timeout=1200).read()
            first = time.perf_counter() - started
        server = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()[0]
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server}/status").read_text())[1])
    return Run(seconds, first, peak * 1024 / 1e9, logged_phases(log_of(box).read_text("utf-8")))


def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(url, timeout=5).status == 200
    return False


def logged_phases(log: str) -> dict[str, float]:
    """Return the phases of the log's first cold_start line. Truss puts the model's line into a line of its own."""
    line = next(line for line in log.splitlines() if "cold_start" in line and "server_start" in line)
    record = json.loads(line)
    return json.loads(record["message"])["seconds"] if "message" in record else record["seconds"]


def floor(box: Container, class_name: str, weights: Weights, state: str) -> dict[str, float]:
    """What a plain start cannot beat: all imports, or one read of every byte, whichever takes longer. Seconds, GB."""
    set_page_cache(state, weights.files)
    with cgroup(state) as limited:
        # Without the start of reading ahead, which only the server's own command has.
        imports = run_and_wait([*limited, *box.command("python3", "-c", IMPORTS, class_name)], env=box.environment)
    loaded = json.loads((box.root / "tmp" / "loaded.json").read_text("utf-8"))
    library = resident_bytes([box.root / file[1:] for file in loaded])
    set_page_cache(state, weights.files)
    read = run_and_wait(read_command(weights.files))
    everything = library / LIMIT if state == "limited" else read * (weights.bytes + library) / weights.bytes
    return {"imports_s": imports, "read_s": read, "library_gb": library / 1e9, "floor_s": max(imports, everything)}


def resident_bytes(files: list[Path]) -> int:
    """Return the bytes of files in the page cache, which are those that a cold run has read."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", *files]
    return sum(map(int, subprocess.check_output(command, text=True).split()))


def measure(model: str, cache: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    images = build_images(model, cache)
    full = make_weights(model, images[0], cache, tiny=False)
    tiny = make_weights(model, images[0], cache, tiny=True)
    config = yaml.safe_load((cache / "projects" / model / "config.yaml").read_text("utf-8"))
    class_name = config["model_metadata"]["pipeline"]["class_name"]
    found: dict[str, Any] = {"weights_gb": full.bytes / 1e9}
    with subjects(model, images, arguments.levers) as boxes:
        for state in arguments.states:
            # The disk's limit would be all that full weights show.
            weights = tiny if state == "limited" else full
            first_image = model in WITH_FIRST_IMAGE and not arguments.levers
            runs: dict[str, list[Run]] = {name: [] for name in boxes}
            floors = []
            set_page_cache(state, weights.files)
            start(boxes["ours"], weights, state, False)  # not counted: after a pause the disk itself may be slow
            for number in range(arguments.runs):
                for name, box in boxes.items():
                    set_page_cache(state, weights.files)
                    runs[name].append(start(box, weights, state, first_image))
                    print(f"{model} {state} {number + 1} {name}: {runs[name][-1]}", file=sys.stderr)
                floors.append(floor(boxes["ours"], class_name, weights, state))
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
    parser.add_argument("cache", type=lambda text: Path(text).absolute(), metavar="CACHE", help="Keeps the weights.")
    parser.add_argument("--models", nargs="+", choices=("sdxl", "sd15"), default=("sdxl",), help="Default: sdxl.")
    parser.add_argument("--states", nargs="+", choices=STATES, default=STATES)
    parser.add_argument("--runs", type=int, default=5, help="Of each, in alternation. Default: 5.")
    parser.add_argument(
        "--levers", action="store_true", help="Leave out one lever at a time, in place of the baselines."
    )
    parser.add_argument("--output", type=Path, default=HERE, help="Where tables and charts go. Default: benchmarks.")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and containers end with it
    if missing := container.what_is_missing():
        sys.exit(f"The image cannot be built here: {missing}.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    found = {model: measure(model, arguments.cache, arguments) for model in arguments.models}
    found["machine"] = machine()
    (arguments.cache / ("levers.json" if arguments.levers else "coldstart.json")).write_text(json.dumps(found))
    report.write(found, arguments.output, arguments.levers)


if __name__ == "__main__":
    main()

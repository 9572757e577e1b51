"""The build commands, and what a start reads ahead because of them. tests/image does the same in the image itself."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MEASURED, BakedProject
from platforms import PROJECT_PYTHON

pytestmark = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)
UNCHECKED_HASH = 1  # https://peps.python.org/pep-0552: the second word of a .pyc
MEBIBYTE = 2**20
JOIN = "[thread.join() for thread in threading.enumerate()[1:]]"


@pytest.fixture
def app(bake: Callable[..., BakedProject], tmp_path: Path) -> Path:
    """A folder as /app, with packages/ in it, as the local server lays it out."""
    for folder in ("model", "packages"):
        shutil.copytree(bake().path / folder, tmp_path / "app" / folder)
    return tmp_path / "app"


def record_of(app: Path) -> Path:
    return app / "packages" / "cold_start" / "imported_files.json"


def build_command(project: BakedProject, number: int, app: Path) -> str:
    command = project.config["build_commands"][number].replace("/packages", "/app/packages")
    return command.replace("/app", str(app))


def python(app: Path, code: str, *arguments: Any, **variables: str) -> str:
    """Run code with cold_start.read_ahead imported, and return what it prints."""
    imports = "import json, sys, threading\nfrom pathlib import Path\nfrom cold_start import read_ahead\n"
    command = [PROJECT_PYTHON, "-c", f"{imports}{code}\n{JOIN}", *map(str, arguments)]
    variables["PYTHONPATH"] = str(app / "packages")
    result = subprocess.run(command, cwd=app, env={**MEASURED, **variables}, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_the_build_command_compiles_what_has_no_bytecode(bake: Callable[..., BakedProject], tmp_path: Path) -> None:
    command, *_ = bake().config["build_commands"]
    venv.create(tmp_path)
    (packages,) = tmp_path.glob("lib/python*/site-packages")
    (packages / "good.py").write_text("x = 1\n")
    (packages / "bad.py").write_text("this is no Python\n")
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
    # Existing bytecode, such as that of Python's startup imports, is compiled again.
    subprocess.run([tmp_path / "bin" / "python", "-m", "compileall", "-q", packages], capture_output=True)
    result = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "bad.py" in result.stdout
    (good,) = packages.glob("__pycache__/good.*.pyc")
    assert int.from_bytes(good.read_bytes()[4:8], "little") == UNCHECKED_HASH


@pytest.fixture(scope="module")
def built(bake: Callable[..., BakedProject], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is /app in the image, after the build command that records the imports."""
    project = bake(preset="sd15")
    folder = tmp_path_factory.mktemp("built")
    app = folder / "app"
    code = "import local_server, sys; from pathlib import Path; local_server.build_app(Path(sys.argv[1]), Path())"
    subprocess.run([PROJECT_PYTHON, "-c", code, app], cwd=project.path, check=True)
    command = build_command(project, 2, app)
    environment = {**os.environ, **MEASURED, "PATH": f"{Path(PROJECT_PYTHON).parent}:/usr/bin:/bin"}
    result = subprocess.run(["sh", "-c", command], env=environment, check=True, capture_output=True, text=True)
    assert "is not recorded" not in result.stdout
    return app


def test_the_build_command_records_what_the_imports_read(built: Path) -> None:
    record = json.loads(record_of(built).read_text())
    assert record["problem"] == ""
    names = Path(PROJECT_PYTHON).parent.parent / "transformers_names"
    assert names.stat().st_mtime > (built / "config.yaml").stat().st_mtime
    server, torch, diffusers = ([file.replace("__pycache__/", "") for file, _, _ in p] for p in record["phases"])
    assert any("truss_server." in file for file in server)
    assert any("libtorch_python" in file for file in torch)
    assert any("torch/functional." in file for file in torch)
    assert any("pipeline_stable_diffusion." in file for file in diffusers)
    assert not set(server) & {file for file in torch + diffusers if file.endswith(".pyc")}
    parts = [part for phase in record["phases"] for part in phase]
    libraries = {file for file, _, _ in parts if ".so" in file}
    touched = sum(end - start for file, start, end in parts if file in libraries)
    # Only the touched parts of each library.
    assert 0 < touched < 0.8 * sum(Path(file).stat().st_size for file in libraries)


def test_a_build_that_cannot_record_goes_on_and_says_so(bake: Callable[..., BakedProject], app: Path) -> None:
    command = build_command(bake(), 2, app)
    environment = {"PATH": f"{Path(PROJECT_PYTHON).parent}:/usr/bin:/bin"}
    result = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0
    assert "No module named 'truss_server'" in result.stderr
    assert result.stdout == "What the imports read is not recorded, see above.\n"


# The log says that these libraries, which are none, cannot be imported without their compiler.
QUIET = "import logging\nlogging.disable()\n"
HIDDEN = """
import builtins
real = open
def hidden(file, *more, **options):
    if file == "/proc/self/pagemap":
        raise PermissionError(13, "Permission denied", file)
    return real(file, *more, **options)
builtins.open = hidden
"""


def test_where_pages_are_hidden_small_files_are_recorded_alone(app: Path) -> None:
    (app / "truss_server.py").touch()
    (app / "torch.py").touch()
    (app / "diffusers.py").write_text("class Pipeline:\n    pass\n")
    python(app, HIDDEN + QUIET + "import image_build\nimage_build.record('Pipeline')")
    record = json.loads(record_of(app).read_text())
    assert record["problem"].startswith("the build could not see which parts of libraries they need ([Errno 13]")
    files = [file for phase in record["phases"] for file, _, _ in phase]
    assert str(app / "diffusers.py") in files
    assert not [file for file in files if ".so" in file]


@pytest.fixture
def files(app: Path) -> dict[str, Path]:
    """Files of a record and of weights, none in memory. The record has only a part of the library."""
    files = {name: app / name for name in ("module.pyc", "library.so", "cache/config.json", "cache/x.safetensors")}
    for file in files.values():
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(64 * MEBIBYTE if file.suffix == ".so" else MEBIBYTE))
        forget(file)
    if any(map(resident_bytes, files.values())):
        pytest.skip("this filesystem keeps its files in memory, so nothing can be read ahead")
    phases = [[["/gone", 0, 10], [str(files["module.pyc"]), 0, MEBIBYTE]], [[str(files["library.so"]), 0, MEBIBYTE]]]
    record = {"summary": "0.00 GB of 3 parts for the imports", "problem": "", "phases": phases}
    record_of(app).write_text(json.dumps(record))
    return files


LOG = "import logging\nlogging.basicConfig(stream=sys.stdout, level=logging.INFO, format='%(levelname)s %(message)s')\n"
IN_THIS_PROCESS = """
import io
sys.stdin = io.StringIO(json.dumps({str(file): 2**20 for file in Path("cache").iterdir()}))
read_ahead.read_all()
"""


@pytest.mark.skipif(shutil.which("fincore") is None, reason="fincore (util-linux) is not there to look at the cache")
@pytest.mark.parametrize(
    ("code", "log"),
    [
        # What Model calls.
        (
            "read_ahead.begin([Path('cache'), Path('not-there-yet')])()",
            "INFO Reading ahead 0.00 GB of 3 parts for the imports, then 0.00 of 0.00 GB of weights.\n",
        ),
        (IN_THIS_PROCESS, ""),
    ],
    ids=["by Model", "by its process"],
)
def test_what_is_read_ahead_is_in_memory(app: Path, files: dict[str, Path], code: str, log: str) -> None:
    assert python(app, LOG + code) == log
    resident = {name: resident_bytes(file) for name, file in files.items()}
    # The kernel reads on a little behind a part.
    assert MEBIBYTE <= resident.pop("library.so") < 64 * MEBIBYTE
    assert set(resident.values()) == {MEBIBYTE}


@pytest.mark.skipif(shutil.which("fincore") is None, reason="fincore (util-linux) is not there to look at the cache")
def test_python_reads_ahead_as_soon_as_it_starts_the_server_and_only_then(
    bake: Callable[..., BakedProject], app: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv")
    (packages,) = tmp_path.glob("venv/lib/python*/site-packages")
    # A path to site-packages that holds no packages: of the model's, only plumbing runs here.
    command = build_command(bake(), 3, app)
    environment = {"PATH": f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin"}
    subprocess.run(["sh", "-c", command], env=environment, check=True)
    assert (packages / "read_ahead.pth").is_file()
    # What begin() does at the end: it names the weights, here none, and waits.
    code = "import sys\nreader = getattr(sys, 'read_ahead', None)\nreader and reader.communicate(b'{}')\n"
    for script, read in (("other.py", False), ("main.py", True)):
        (app / script).write_text(code)
        subprocess.run([tmp_path / "venv" / "bin" / "python", app / script], env=environment, check=True)
        assert (resident_bytes(files["module.pyc"]) == MEBIBYTE) == read
    assert resident_bytes(files["cache/x.safetensors"]) == 0


def test_without_a_record_it_says_why_the_imports_are_slower(app: Path) -> None:
    said = python(app, LOG + "read_ahead.begin([])()")
    assert said == (
        "WARNING Reading ahead nothing for the imports, then 0.00 of 0.00 GB of weights. The imports will be slower, "
        f"because no image build made {record_of(app)}.\n"
    )


READING = """
import os
imports_done, sys.stdin = [open(end, mode) for end, mode in zip(os.pipe(), "rw")][::-1]
one, all_four = threading.Event(), threading.Barrier(4)
def send(*part):
    print(part[1:], flush=True)
    one.set()
    all_four.wait(60)
read_ahead._send, read_ahead.CHUNK_BYTES = send, 10
threading.Thread(target=read_ahead._read_weights, args=({"a": 25, "b": 10},)).start()
one.wait()
print("imports done", flush=True)
imports_done.close()
"""


def test_more_readers_join_when_the_imports_are_done(app: Path) -> None:
    first, then, *others = python(app, READING).splitlines()
    assert (first, then) == ("(0, 10, 0)", "imports done")
    assert sorted(others) == ["(0, 10, 25)", "(10, 20, 0)", "(20, 25, 0)"]


def test_weights_are_read_in_the_order_in_which_load_needs_them(app: Path) -> None:
    (app / "cache" / "pipeline").mkdir(parents=True)
    index = {"_class_name": "X", "text_encoder": ["a", "b"], "unet": ["a", "b"], "vae": ["a", "b"]}
    (app / "cache" / "pipeline" / "model_index.json").write_text(json.dumps(index))
    call = "print(*read_ahead.load_order(Path('cache'), ['vae'], ['pipeline', 'lora-style']))"
    found = [name for name in python(app, call).split() if "_class_name" not in name]
    # The VAE has a folder of its own.
    parts = ["cache/pipeline/text_encoder", "cache/pipeline/unet", "cache/vae"]
    assert found == [*parts, "cache/vae", "cache/pipeline", "cache/lora-style"]
    # A download that is under way.
    (app / "cache" / "pipeline" / "model_index.json").write_text('{"_class')
    assert python(app, call).split() == ["cache/vae", "cache/pipeline", "cache/lora-style"]


GIB = 2**30
V1 = {"memory.limit_in_bytes": 10 * GIB, "memory.usage_in_bytes": 4 * GIB}
V1_STAT = {"cache": 0, "total_cache": 3 * GIB, "total_shmem": GIB}
V2 = {"memory.max": 10 * GIB, "memory.current": 4 * GIB}
V2_STAT = {"anon": GIB, "file": 3 * GIB, "shmem": GIB}
V1_NO_LIMIT = 9223372036854771712
# The limit, less what is used and cannot be dropped, less what the server is going to take.
LEFT = (10 - (4 - 3 + 1) - 2) * GIB
NO_LIMIT = (100 - 2) * GIB


@pytest.mark.parametrize(
    ("own", "groups", "left"),
    [
        ("4:memory:/pod/one\n0::/\n", {"memory/pod/one": {**V1, "memory.stat": V1_STAT}}, LEFT),
        # A limit further up counts too.
        (
            "4:memory:/pod/one\n",
            {
                "memory/pod/one": {**V1, "memory.limit_in_bytes": V1_NO_LIMIT, "memory.stat": V1_STAT},
                "memory/pod": {**V1, "memory.stat": V1_STAT},
            },
            LEFT,
        ),
        ("0::/pod/one\n", {"pod/one": {**V2, "memory.stat": V2_STAT}}, LEFT),
        ("0::/pod/one\n", {"pod/one": {**V2, "memory.max": "max", "memory.stat": V2_STAT}}, NO_LIMIT),
        # In a container: the path is that of the host, and the container's own files are at the root.
        ("0::/\n", {".": {**V2, "memory.stat": V2_STAT}}, LEFT),
        ("4:memory:/host/pod/one\n", {"memory": {**V1, "memory.stat": V1_STAT}}, LEFT),
        ("0::/../../pod\n", {".": {**V2, "memory.stat": V2_STAT}}, LEFT),
        # Less than the server needs: nothing is read ahead.
        ("0::/\n", {".": {"memory.max": GIB, "memory.current": GIB, "memory.stat": V2_STAT}}, 0),
        ("3:cpu:/\n", {}, NO_LIMIT),
        # Not on Linux.
        (None, {}, sys.maxsize - 2 * GIB),
    ],
)
def test_no_more_is_read_than_memory_holds(
    app: Path, tmp_path: Path, own: str | None, groups: dict[str, dict[str, Any]], left: int
) -> None:
    for group, content in groups.items():
        (tmp_path / "cgroup" / group).mkdir(parents=True, exist_ok=True)
        for name, value in content.items():
            text = "\n".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            (tmp_path / "cgroup" / group / name).write_text(text)
    proc = {"/proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:    {100 * GIB // 1024} kB\n", "/proc/self/cgroup": own}
    proc = {file: text.splitlines() for file, text in proc.items() if own is not None}
    code = f"""
real = read_ahead._lines
proc = {proc}
read_ahead._lines = lambda file: proc.get(file, []) if str(file).startswith("/proc") else real(file)
read_ahead.CGROUPS = Path({str(tmp_path / "cgroup")!r})
print(read_ahead.memory_left())
"""
    assert int(python(app, code)) == left


MEMORY_CGROUPS = {
    Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",
    Path("/sys/fs/cgroup"): "memory.max",
}
LIMIT = 768 * MEBIBYTE
USE = f"""
import mmap, os, re
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
read_ahead.RESERVE_BYTES = int(sys.argv[2])
read_ahead._read_weights({{sys.argv[3]: os.path.getsize(sys.argv[3])}})
{JOIN}
# As load() does: each page once, in order.
with open(sys.argv[3], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    sum(mapped[offset] for offset in range(0, len(mapped), 4096))
print(re.search(r"read_bytes: (\\d+)", Path("/proc/self/io").read_text())[1])
"""


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of LIMIT bytes."""
    for root, limit in MEMORY_CGROUPS.items():
        folder = root / f"fast-truss-{os.getpid()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            try:
                (folder / limit).write_text(str(LIMIT))
                yield folder
                return
            finally:
                folder.rmdir()
    pytest.skip("no memory cgroup can be made here: that takes root, and a cgroup filesystem that can be written")


def test_under_a_memory_limit_below_the_weights_the_disk_is_read_once(
    app: Path, tmp_path: Path, small_cgroup: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    size = LIMIT * 2  # without a bound, at most half of the second read is in memory
    with weights.open("wb") as file:
        for _ in range(size // MEBIBYTE):
            file.write(bytes(MEBIBYTE))
    # A reserve of more than there is: nothing is read ahead. One below zero: there is no bound.
    read = {}
    for reserve in (LIMIT, LIMIT // 8, -size):
        forget(weights)
        if resident_bytes(weights):
            pytest.skip("this filesystem keeps its files in memory, so nothing is read from a disk")
        read[reserve] = int(python(app, USE, small_cgroup, reserve, weights)) / size
    assert 0.95 < read[LIMIT] <= 1.05
    assert 0.95 < read[LIMIT // 8] <= 1.05
    assert read[-size] > 1.5, "without a bound the disk is read twice: this test would not see it"


def forget(file: Path) -> None:
    """Drop file from the page cache, after what was written is on the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_bytes(file: Path) -> int:
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", file]
    return int(subprocess.check_output(command, text=True))

"""The image that Baseten would build: what the build commands made of it, and that the server starts in it.

`make test-image` runs it. Server and requirements are the real ones, with CUDA's libraries; no GPU is used.
"""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import container
import httpx
import pytest
import yaml
from conftest import TEMPLATE, BakedProject
from container import NON_ROOT, Container
from platforms import SMALL
from truss.truss_handle.patch.calc_patch import calc_truss_patch
from truss.truss_handle.patch.hash import directory_content_hash
from truss.truss_handle.patch.signature import calc_truss_signature

pytestmark = [
    pytest.mark.image,
    pytest.mark.skipif(container.what_is_missing() is not None, reason=str(container.what_is_missing())),
]
CACHE = TEMPLATE / "build" / "image"
LIBRARY_BYTES = 450_000_000  # of the imports, at most
# https://peps.python.org/pep-0552: the second word of a .pyc. Not checked, and compared with the source's hash.
UNCHECKED_HASH, CHECKED_HASH = 1, 3
# Output of Python -v for a module that it compiled. For one with bytecode it quotes the .pyc.
COMPILED = re.compile(r"^# code object from (/.*\.py)$", re.MULTILINE)


@pytest.fixture(scope="session")
def project(bake: Callable[..., BakedProject]) -> BakedProject:
    return bake()


def build(project: Path, name: str) -> str:
    """Build what `truss push` would have built of project. Returns the log."""
    context, log = CACHE / name / "context", CACHE / name / "build.log"
    shutil.rmtree(context, ignore_errors=True)
    context.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "local_server.py", "--context", context], cwd=project, check=True)
    try:
        container.build(context, name, CACHE, log)
    except RuntimeError as error:
        if re.search("error sending request|Failed to fetch|Failed getting release|Temporary failure", str(error)):
            pytest.skip(f"the network is missing that brings the packages of the image: see {log}")
        raise
    return log.read_text("utf-8")


@pytest.fixture(scope="session")
def build_log(project: BakedProject) -> str:
    return build(project.path, "fast-truss")


@pytest.fixture(scope="session")
def weights(project: BakedProject, build_log: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny weights of the same family, made with what the image holds."""
    folder = tmp_path_factory.mktemp("weights")
    with container.container("fast-truss") as box:
        result = box.run("python3", "/project/tiny/make.py", "/tmp/weights", mounts={project.path: "/project"})
        assert result.returncode == 0, result.stdout + result.stderr
        shutil.copytree(box.root / "tmp" / "weights", folder, dirs_exist_ok=True)
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)  # for every user, as a cache is
    return folder


@pytest.fixture
def box(project: BakedProject, build_log: str) -> Iterator[Container]:
    with container.container("fast-truss", **project.config["environment_variables"]) as box:
        yield box


class Server:
    """A server in a container, on a port of this machine."""

    def __init__(self, process: subprocess.Popen, port: int) -> None:
        self.process = process
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False)

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/v1/models/model/loaded", timeout=5).is_success
        return False

    def wait(self) -> None:
        """Return when it is ready, or ended, or after a minute."""
        for _ in range(600):
            if self.process.poll() is not None or self.is_ready():
                return
            time.sleep(0.1)

    def predict(self) -> httpx.Response:
        return self.http.post("/v1/models/model:predict", json=SMALL)


@contextlib.contextmanager
def serve(box: Container, weights: Path, log: Path, user: int = 0, **variables: str) -> Iterator[Server]:
    """Start what the image starts, as Baseten does, and wait until it is ready."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        ports = first.getsockname()[1], second.getsockname()[1]
    development = "CONTROL_SERVER_PORT" in box.environment
    names = ("CONTROL_SERVER_PORT", "INFERENCE_SERVER_PORT") if development else ("INFERENCE_SERVER_PORT",)
    environment = {**box.environment, **dict(zip(names, map(str, ports), strict=False)), **variables}
    command = box.command(user=user, mounts={weights: "/app/model_cache"})
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        server = Server(process, ports[0])
        server.wait()
        assert process.poll() is None and server.is_ready(), log.read_text("utf-8")[-4000:]
        yield server
    finally:
        container.stop(process)


def image_of(response: httpx.Response) -> str:
    assert response.is_success, response.text
    return response.json()["images"][0]["image"]


def packages(box: Container) -> Path:
    (torch,) = box.root.glob("usr/**/*-packages/torch/__init__.py")
    return torch.parent.parent


def test_the_build_commands_ran_and_made_what_they_must(box: Container, build_log: str) -> None:
    # Not of the command itself, which the log repeats.
    assert not re.search("^What the imports read is not recorded", build_log, re.MULTILINE)
    record = json.loads((box.root / "packages" / "cold_start" / "imported_files.json").read_text("utf-8"))
    assert record["problem"] == ""
    assert (packages(box) / "read_ahead.pth").is_file()
    assert (box.root / "usr" / "transformers_names").is_file()
    server, torch, diffusers = ([file for file, _, _ in phase] for phase in record["phases"])
    # Also what Python itself and the server import as they start.
    ours = ("/app/model/__pycache__/model.", "/packages/cold_start/__pycache__/pipeline.")
    for name in ("fastapi", "json/__pycache__/decoder", "h11_impl", *ours):
        assert any(name in file for file in server), name
    assert any("libtorch_cpu" in file for file in torch)
    assert any("libcublas" in file for file in torch)
    assert any("pipeline_stable_diffusion_xl.cpython" in file for file in diffusers)
    parts = [part for phase in record["phases"] for part in phase]
    assert all(start < end <= (box.root / file[1:]).stat().st_size + 4095 for file, start, end in parts)
    libraries = sum(end - start for file, start, end in parts if ".so" in file)
    assert 100_000_000 < libraries <= LIBRARY_BYTES


def test_site_packages_have_bytecode_that_no_time_makes_invalid(box: Container) -> None:
    ours = (box.root / "app" / "model", box.root / "packages" / "cold_start")
    folders = {packages(box) / "diffusers": UNCHECKED_HASH, **dict.fromkeys(ours, CHECKED_HASH)}
    for folder, kind in folders.items():
        compiled = list(folder.rglob("*.pyc"))
        assert compiled, folder
        assert {int.from_bytes(file.read_bytes()[4:8], "little") for file in compiled} == {kind}, folder


@pytest.mark.parametrize("user", [0, NON_ROOT], ids=["root", "user"])
def test_the_server_makes_an_image_and_writes_nothing_else(
    box: Container, weights: Path, tmp_path: Path, user: int
) -> None:
    home = "/home/app" if user else "/root"
    # What Truss's Dockerfile does where the server does not run as root.
    if user:
        assert box.run("chown", "-R", f"{user}:{user}", home, "/app", "/packages").returncode == 0
    before = changed(box.root)
    with serve(box, weights, tmp_path / "log", user, HOME=home) as server:
        assert image_of(server.predict()).startswith("iVBORw0KGgo")
    log = (tmp_path / "log").read_text("utf-8")
    assert re.search(r"Reading ahead 0\.\d\d GB of \d+ parts for the imports, then 0\.00 of 0\.00 GB of weights\.", log)
    assert "The imports will be slower" not in log
    written = {file for file, time in changed(box.root).items() if before.get(file) != time}
    assert sorted(file for file in written if not file.startswith(("tmp/", f"{home[1:]}/", "app/"))) == []


def changed(root: Path) -> dict[str, int]:
    """Return when each file under root was changed, in whatever way."""
    command = ["find", ".", "-xdev", "-type", "f", "-printf", "%P\\t%C@\\n"]
    lines = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()
    return dict(line.split("\t") for line in lines)


def test_no_module_is_compiled_at_the_start_even_if_a_builder_reset_all_times(
    box: Container, weights: Path, tmp_path: Path
) -> None:
    reset = 'find "$@" -xdev -type f -exec touch --no-create --date=@0 {} +'
    folders = (f"/{packages(box).relative_to(box.root)}", "/app", "/packages")
    assert box.run("sh", "-c", reset, "sh", *folders).returncode == 0
    with serve(box, weights, tmp_path / "log", PYTHONVERBOSE="1") as server:
        assert server.predict().is_success
    log = (tmp_path / "log").read_text("utf-8")
    assert "# code object from '/app/model/__pycache__/" in log, "python -v says other things than expected"
    assert COMPILED.findall(log) == []


def test_without_a_record_the_server_starts_and_says_so(box: Container, weights: Path, tmp_path: Path) -> None:
    (box.root / "packages" / "cold_start" / "imported_files.json").unlink()
    with serve(box, weights, tmp_path / "log") as server:
        assert server.predict().is_success
    log = (tmp_path / "log").read_text("utf-8")
    assert "because no image build made /packages/cold_start/imported_files.json" in log


def test_where_the_builder_hides_pages_only_small_files_are_recorded(box: Container) -> None:
    # As in a sandbox without this file.
    code = "import builtins, sys; real = open\n"
    code += "def hidden(file, *more, **options):\n"
    code += "    if file == '/proc/self/pagemap': raise PermissionError(13, 'Permission denied', file)\n"
    code += "    return real(file, *more, **options)\n"
    code += "builtins.open = hidden\nimport image_build\nimage_build.record('StableDiffusionXLPipeline')"
    result = box.run("env", "PYTHONPATH=/packages", "python3", "-c", code)
    assert result.returncode == 0, result.stderr
    record = json.loads((box.root / "packages" / "cold_start" / "imported_files.json").read_text("utf-8"))
    assert "Permission denied" in record["problem"]
    files = [file for phase in record["phases"] for file, _, _ in phase]
    assert len(files) > 2000
    assert not [file for file in files if ".so" in file]


def test_the_development_image_starts_and_truss_watch_patches_it(
    project: BakedProject, weights: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(project.path, tmp_path / "project"))
    config = yaml.safe_load((source / "config.yaml").read_text("utf-8"))
    # In the image, the commit's weights are as those of the other tests: mounted.
    del config["model_cache"]
    (source / "config.yaml").write_text(yaml.safe_dump({**config, "live_reload": True}), "utf-8")
    build(source, "fast-truss-development")
    with (
        container.container("fast-truss-development", **config["environment_variables"]) as box,
        serve(box, weights, tmp_path / "log") as server,
    ):
        before = server.predict()
        image_of(before)
        signature = calc_truss_signature(source)
        model = source / "model" / "model.py"
        text = model.read_text("utf-8")
        assert text.count('f"image/{inputs.output_format}"') == 1
        model.write_text(text.replace('f"image/{inputs.output_format}"', '"image/of-another-kind"'), "utf-8")
        (patch,) = calc_truss_patch(source, signature)
        body = {
            "hash": directory_content_hash(source),
            "prev_hash": server.http.get("/control/truss_hash").json()["result"],
            "patches": [patch.to_dict()],
        }
        response = server.http.post("/control/patch", json=body)
        assert response.is_success, response.text
        assert "error" not in response.json(), response.text
        server.wait()  # it starts again
        after = server.predict()
        assert image_of(after) == image_of(before)
        assert after.json()["content_type"] == "image/of-another-kind"

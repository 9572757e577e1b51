"""The real downloader: Truss's LazyDataResolverV2 and truss_transfer fetch the weights while the server starts."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import PROJECT, BakedProject
from file_server import CACHE, Fault, FileServer, Reply, serve
from platforms import PROJECT_PYTHON, SMALL

sys.path.append(str(PROJECT))
import local_server

UNET = "pipeline/unet/diffusion_pytorch_model.fp16.safetensors"
PREPARE = f"""
import sys
from pathlib import Path
import local_server
folder = Path(sys.argv[1])
local_server.build_app(folder / "app", Path("{CACHE}"))
local_server.find_weights("tiny", folder)
"""

# truss_transfer looks for the manifest at fixed paths under /, and the image has its app in /app. So the command gets a
# root of its own, where what is under / is bound, in a mount namespace that ends with it. The host stays as it is.
ENTER = r"""
set -e
root=$1 app=$2 environment=$3
shift 3
mount -t tmpfs none "$root"
for entry in /*; do
  case $entry in /app | /bptr | /static-bptr | /cache | /packages | /secrets | /tmp) continue ;; esac
  if [ -L "$entry" ]; then cp -P "$entry" "$root"
  elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
  fi
done
mkdir -p "$root/tmp" "$root/app" "$root/packages" "$root/static-bptr" "$root$environment"
mount --rbind "$environment" "$root$environment"
mount --rbind "$app" "$root/app"
mount --rbind "$app/packages" "$root/packages"
cp "$app/bptr-manifest" "$root/static-bptr/static-bptr-manifest.json"
exec chroot "$root" sh -c 'cd /app && exec "$@"' sh "$@"
"""
NAMESPACE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]


def refusal() -> str:
    """Return why this machine cannot run ENTER, or nothing."""
    if PROJECT_PYTHON is None:
        return "PROJECT_PYTHON is not set: `make test` makes that environment and names it"
    if shutil.which("unshare") is None:
        return "unshare (util-linux) is not installed"
    tried = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True, text=True)
    return f"a mount namespace cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


WHY_NOT = refusal()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@dataclasses.dataclass(frozen=True)
class Server:
    """A Truss server that downloads its weights."""

    process: subprocess.Popen
    url: str
    app: Path

    def log(self) -> str:
        return (self.app / "server.log").read_text()

    def get(self, path: str) -> int:
        """Return the status code, or 0 if nothing listens."""
        return self._status("GET", path)

    def predict(self) -> int:
        return self._status("POST", local_server.PREDICT, json=SMALL)

    def _status(self, method: str, path: str, **options: Any) -> int:
        try:
            return httpx.request(method, self.url + path, timeout=60, **options).status_code
        except httpx.TransportError:
            return 0

    def wait_for(self, reached: Callable[[], Any]) -> None:
        """Return when it is so. Fails if the server ends before."""
        for _ in range(3000):
            if reached():
                return
            assert self.process.poll() is None, self.log()
            time.sleep(0.05)
        pytest.fail(f"not reached in 150 s:\n{self.log()}")


Start = Callable[..., Server]


@pytest.fixture(scope="module")
def prepared(bake: Callable[..., BakedProject], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with app, as /app is in the image, and weights."""
    folder = tmp_path_factory.mktemp("download")
    subprocess.run([PROJECT_PYTHON, "-c", PREPARE, folder], cwd=bake(preset="sd15").path, check=True)
    return folder


def command(files: FileServer, folder: Path, *arguments: str) -> list[str | Path]:
    """Return what runs PROJECT_PYTHON in /app, which is folder/app, with the manifest of files in its place."""
    (folder / "root").mkdir()
    (folder / "app" / "bptr-manifest").write_text(json.dumps(files.manifest()))
    environment = Path(PROJECT_PYTHON).parent.parent
    enter = ["sh", "-c", ENTER, "sh", folder / "root", folder / "app", environment]
    return [*NAMESPACE, *enter, PROJECT_PYTHON, *arguments]


@pytest.fixture
def start(prepared: Path, tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen] = []

    def _start(files: FileServer, check_hashes: bool = False, **more: str) -> Server:
        app = shutil.copytree(prepared / "app", tmp_path / "app", dirs_exist_ok=True)
        port = local_server.free_port()
        config = yaml.safe_load((app / "config.yaml").read_text("utf-8"))
        config["model_metadata"]["pipeline"]["check_hashes"] = check_hashes
        (app / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
        declared = config["environment_variables"]
        environment = {**os.environ, **declared, "INFERENCE_SERVER_PORT": str(port), "HOME": "/app", **more}
        with (app / "server.log").open("w") as log:
            process = subprocess.Popen(
                command(files, tmp_path, "main.py"), env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        started.append(process)
        return Server(process, f"http://127.0.0.1:{port}", app)

    yield _start
    for process in started:
        local_server.stop(process)


def test_load_waits_for_the_last_byte_and_the_imports_do_not(prepared: Path, start: Start, tmp_path: Path) -> None:
    # What a download that was cut off leaves behind: read_ahead finds one file half there, and the others absent.
    half = tmp_path / "app" / "model_cache" / UNET
    half.parent.mkdir(parents=True)
    half.write_bytes((prepared / "weights" / UNET).read_bytes()[:-1000])
    # The last module of the phase `import_diffusers`: PYTHONVERBOSE makes Python log each import when it is done.
    imported = re.compile(r"^import '.*\.pipeline_stable_diffusion'", re.MULTILINE)
    log = tmp_path / "app" / "server.log"
    at_request = []
    with serve(prepared / "weights", held=UNET, on_request=lambda: at_request.append(log.read_text())) as files:
        server = start(files, check_hashes=True, PYTHONVERBOSE="1")
        server.wait_for(lambda: files.all_but_the_last_byte.is_set() and imported.search(server.log()))
        assert not imported.search(at_request[0])
        assert server.get(local_server.READY) == 503
        assert server.predict() == 503
        files.release.set()
        server.wait_for(lambda: server.get(local_server.READY) == 200)
        assert server.predict() == 200
        fetched = {name: (server.app / "model_cache" / name).read_bytes() for name in files.files()}
        assert fetched == files.files()


def forbidden(reply: Reply) -> Reply:
    return dataclasses.replace(reply, status=403, body=b"", length=0)


def dropped(reply: Reply) -> Reply:
    return dataclasses.replace(reply, body=reply.body[: len(reply.body) // 2])


def shorter(reply: Reply) -> Reply:
    """A shorter file, announced by the server."""
    return dataclasses.replace(reply, total=reply.total - 100)


def cut(reply: Reply) -> Reply:
    """A shorter file under the right length."""
    body = reply.body[:-100] or reply.body
    return dataclasses.replace(reply, body=body, length=len(body))


def garbled(reply: Reply) -> Reply:
    """The right length, and one wrong byte in the header."""
    return dataclasses.replace(reply, body=reply.body[:8] + b"?" + reply.body[9:])


def renamed(reply: Reply) -> Reply:
    """The right length, and one wrong byte in a tensor's name."""
    return dataclasses.replace(reply, body=reply.body.replace(b"conv_in.weight", b"conv_in.veight"))


def flipped(reply: Reply) -> Reply:
    """The right length, and one wrong byte at the end: of a tensor, or of a text."""
    return dataclasses.replace(reply, body=reply.body[:-1] + bytes([reply.body[-1] ^ 0xFF]))


FAULTS = {
    forbidden: "could not be downloaded: .*403 Forbidden",
    dropped: "could not be downloaded: .*too many retries",
    shorter: "could not be downloaded: .*size mismatch",
    cut: f"unet cannot be read from .*{UNET}",
    garbled: f"unet cannot be read from .*{UNET}",
    renamed: "unet cannot be read from .*: no file has one of its tensors",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_failed_download_is_a_failed_load(prepared: Path, start: Start, fault: Fault) -> None:
    with serve(prepared / "weights", faults={UNET: fault}) as files:
        message = failure_of(start(files))
    assert re.search(FAULTS[fault], message), message


@pytest.mark.parametrize("name", [UNET, "pipeline/tokenizer/merges.txt"])
def test_one_wrong_byte_is_a_failed_load_if_hashes_are_checked(prepared: Path, start: Start, name: str) -> None:
    with serve(prepared / "weights", faults={name: flipped}) as files:
        message = failure_of(start(files, check_hashes=True))
    assert f"{name} is corrupt: its hash differs" in message


def failure_of(server: Server) -> str:
    """Wait until server has ended without one answer. Returns what load() raised."""
    statuses = set()
    for _ in range(900):
        if server.process.poll() is not None:
            break
        statuses |= {server.predict(), server.get(local_server.READY)}
        time.sleep(0.2)
    # Truss ends in good order, so with 0, or kills itself if a probe comes first.
    assert server.process.poll() is not None, server.log()
    # 0: nothing listens, before the start and after the end.
    assert statuses == {0, 503}
    (failure,) = [line for line in server.log().splitlines() if "Exception while loading model" in line]
    return json.loads(failure)["exc_info"].splitlines()[-1]


def test_the_downloader_compares_lengths_and_not_hashes(prepared: Path, tmp_path: Path) -> None:
    """So there is check_hashes: if this fails, truss_transfer now finds the wrong byte, and it can go."""
    (tmp_path / "app" / "packages").mkdir(parents=True)
    with serve(prepared / "weights", faults={UNET: flipped}) as files:
        fetch = "import truss_transfer; truss_transfer.lazy_data_resolve('data')"
        subprocess.run(command(files, tmp_path, "-c", fetch), check=True, capture_output=True, timeout=120)
        wanted = files.files()[UNET]
    fetched = (tmp_path / "app" / "model_cache" / UNET).read_bytes()
    assert len(fetched) == len(wanted)
    assert fetched != wanted

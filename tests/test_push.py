"""What `truss push` sends: the archive, the config, and that the archive serves and takes a live reload."""

import ast
import contextlib
import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import control_plane
import httpx
import pytest
from conftest import ACCELERATOR_FACTS, DELIVERIES, FACTS, BakedProject
from platforms import PROJECT_PYTHON, SMALL, url_when_ready
from truss.base.truss_config import TrussConfig
from truss.util.path import is_ignored, load_trussignore_patterns_from_truss_dir

# One worker, because they share the pushes and the server.
needs_project = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)
SECRET = b"a-secret-of-the-user"
# What a project holds after a while of use. All of it has the secret, so that one look at the archive finds it.
LEFTOVERS = [
    "PIC.PNG",
    "examples/app.py",
    "data/.env",
    "datasets/train/1.png",
    "env/lib/torch.py",
    "examples/backend.py",
    "model/.ipynb_checkpoints/model.py",
    "model/id_rsa",
    "node_modules/x/index.js",
    "notebooks/trial.ipynb",
    "sdxl.ckpt",
    "secrets.json",
    "service-account-prod.json",
    "sdxl.safetensors",
    "trial.ipynb",
    ".netrc",
    ".trussrc",
    "id_ed25519",
    "id_rsa",
    ".cruft.json",
    ".DS_Store",
    ".env",
    ".env.local",
    ".git/config",
    ".idea/workspace.xml",
    ".mypy_cache/3.11/cache.json",
    ".pytest_cache/README.md",
    ".ruff_cache/content",
    ".venv-app/lib/app.py",
    ".venv/lib/torch.py",
    ".vscode/settings.json",
    ".weights/pipeline/unet/diffusion_pytorch_model.fp16.safetensors",
    "Makefile.rej",
    "image.jpg",
    "image.png",
    "image.webp",
    "model/__pycache__/model.cpython-311.pyc",
    "tests/__pycache__/conftest.cpython-311.pyc",
    "venv/lib/torch.py",
]


# What a model may need, although the folder of the project has files of these names that are left out.
OF_THE_MODEL = {
    "data/names.txt": b"Ada\n",
    "model/assets/logo.png": b"\x89PNG",
    "model/client.py": b"KIND = 'of the model'\n",
    "packages/mylib/__init__.py": b"",
    "packages/mylib/app.py": b"from pathlib import Path\n\nNAMES = Path('data/names.txt').read_text()\n",
    "packages/mylib/pyproject.toml": b"[project]\n",
    "packages/mylib/tests/test_app.py": b"",
}


@dataclasses.dataclass(frozen=True)
class Push:
    """A project, and what reached the platform when it was pushed."""

    project: BakedProject
    validated: dict[str, Any]
    created: dict[str, Any]
    archive: bytes

    def files(self) -> dict[str, bytes]:
        with tarfile.open(fileobj=io.BytesIO(self.archive)) as tar:
            return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def truss_push(
    plane: control_plane.ControlPlane, project: Path, home: Path, key: str, *flags: str
) -> subprocess.CompletedProcess:
    # Only this: neither the settings, the keys nor the proxies of the user.
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "BASETEN_TRUSS_AUTH_REMOTE_URL": plane.url,
        "BASETEN_TRUSS_AUTH_API_KEY": key,
        "TRUSS_NO_UPDATE_CHECK": "1",
    }
    command = [Path(sys.executable).parent / "truss", "push", "--non-interactive", *flags]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def plane() -> Iterator[control_plane.ControlPlane]:
    with control_plane.control_plane() as plane:
        yield plane


@pytest.fixture(scope="module")
def pushes(
    bake: Callable[..., BakedProject], plane: control_plane.ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Push]:
    made = {}
    for delivery in DELIVERIES:
        project = bake(preset="sd15", weights=delivery)
        for name in LEFTOVERS:
            file = project.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(SECRET)
        for name, content in OF_THE_MODEL.items():
            file = project.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        result = truss_push(plane, project.path, tmp_path_factory.mktemp("home"), control_plane.KEY)
        assert result.returncode == 0, result.stdout + result.stderr
        created = plane.created[-1]
        made[delivery] = Push(project, plane.validated[-1], created, plane.archive(created["s3_key"]))
    return made


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_the_archive_holds_the_config_and_the_model_and_nothing_else(pushes: dict[str, Push], delivery: str) -> None:
    push = pushes[delivery]
    files = push.project.files()
    of_the_server = re.compile(r"config\.yaml|(model|packages(/cold_start)?)/[a-z_]+\.py")
    needed = {name: files[name] for name in files if of_the_server.fullmatch(name)}
    assert push.files() == needed | OF_THE_MODEL
    assert SECRET not in push.archive
    assert len(push.archive) < 200_000


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_the_config_that_arrives_is_the_file(pushes: dict[str, Push], delivery: str) -> None:
    push = pushes[delivery]
    file = push.project.path / "config.yaml"
    assert push.created["raw_config"] == file.read_bytes()
    assert push.validated == push.created["config"] == TrussConfig.from_yaml(file).to_dict()
    # Truss fills in defaults. What the model reads, and what is delivered, it must not touch.
    written = push.project.config
    assert push.created["config"]["model_metadata"] == written["model_metadata"]
    assert len(push.created["config"][delivery]) == len(written[delivery])
    assert push.created["name"] == written["model_name"]


@pytest.mark.parametrize("above", ["/home/me", "/home/me/tests", "/home/me/examples/.work", "/srv/datasets/env"])
def test_truss_watch_sees_a_change_of_the_model_wherever_the_project_is(pushes: dict[str, Push], above: str) -> None:
    patterns = load_trussignore_patterns_from_truss_dir(pushes[DELIVERIES[0]].project.path)
    # As Truss asks: by the absolute path.
    for name in ("config.yaml", "model/model.py", *OF_THE_MODEL):
        assert not is_ignored(Path(above, "project", name), patterns), name


def test_the_image_gets_all_that_is_pushed(pushes: dict[str, Push], tmp_path: Path) -> None:
    # The command runs on the environment of the project where there is one.
    push = pushes[DELIVERIES[0]]
    command = [PROJECT_PYTHON or sys.executable, "local_server.py", "--context", tmp_path / "context"]
    subprocess.run(command, cwd=push.project.path, check=True)
    for name, content in push.files().items():
        if name != "config.yaml":
            assert (tmp_path / "context" / name).read_bytes() == content
    context = [file for file in (tmp_path / "context").rglob("*") if file.is_file()]
    assert not [file for file in context if SECRET in file.read_bytes()]


def check(project: Path, python: str | None = PROJECT_PYTHON) -> subprocess.CompletedProcess:
    command = [python or sys.executable, "check.py"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


def test_make_check_lists_what_is_pushed(pushes: dict[str, Push]) -> None:
    push = pushes[DELIVERIES[0]]
    result = check(push.project.path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "No problems found."
    sizes = [line for line in result.stdout.splitlines() if line.startswith("  ")]
    listed = dict(reversed(line.split(maxsplit=1)) for line in sizes)
    assert {name: int(size.replace(",", "")) for name, size in listed.items()} == {
        name: len(content) for name, content in push.files().items()
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("config.yaml", "accelerator: T4", "accelerator: V100", "accelerator is 'V100': torch has no kernels for it"),
        ("config.yaml", "accelerator: T4", "accelerator: T5", "accelerator: Unsupported accelerator type: `T5`"),
        (
            "config.yaml",
            'gpu_memory_gb: {"fixed": ',
            'gpu_memory_gb: {"fixed": 1',
            "a model can have 15.6 GB of it, and an image of 1048576 pixels (limits.max_pixels) needs ",
        ),
        (
            "config.yaml",
            "gpu_memory_gb: {",
            "gpu_memory_gb: lots # {",
            "gpu_memory_gb is 'lots': use the numbers fixed",
        ),
        ("config.yaml", '"per_lora": ', '"per_lora": true, "x": ', "use the numbers fixed, per_megapixel, per_lora"),
        ("config.yaml", "    dtype: float16", "    dtype: bfloat16", "'T4': it has no bfloat16, use one of L4, "),
        (
            "config.yaml",
            "max_size: 1024\n      max_pixels: 1048576",
            "max_size: 4096\n      max_pixels: 16777216",
            "use one of A100, RTX_PRO_6000, H100, H200, B200, B300, GB300, or what it holds: limits.max_pixels: ",
        ),
        ("config.yaml", "resources:\n", "resources: {}\nother:\n", "Truss has no key other"),
        (
            "config.yaml",
            "accelerator: T4",
            'instance_type: "V100:4x16"',
            "'V100': torch has no kernels",
        ),
        ("config.yaml", 'revision: "451f4f', 'revision: main # "451f4f', "is at 'main': use a commit, 40 hex digits"),
        ("config.yaml", "requirements:", "requirments:", "Truss has no key requirments, did you mean requirements?"),
        ("config.yaml", "  predict_concurrency: 1", "  predict_concurency: 1", "predict_concurency"),
        ("config.yaml", "  predict_concurrency", "\tpredict_concurrency", "config.yaml, line "),
        ("model/request.py", '"""', '"""hf_' + "a" * 34, "model/request.py contains a Hugging Face token"),
        ("model/request.py", '"""', '"""-----BEGIN RSA PRIVATE KEY-----', "model/request.py contains a private key"),
    ],
)
def test_make_check_refuses_in_one_sentence(
    bake: Callable[..., BakedProject], file: str, old: str, new: str, sentence: str
) -> None:
    project = bake(preset="sd15").path
    text = (project / file).read_text("utf-8")
    assert old in text
    (project / file).write_text(text.replace(old, new, 1), "utf-8")
    result = check(project)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_make_check_takes_an_instance_type_and_refuses_a_link_to_nothing(bake: Callable[..., BakedProject]) -> None:
    project = bake(preset="sd15").path
    config = project / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("accelerator: T4", 'instance_type: "L4:4x16"'), "utf-8")
    assert check(project).returncode == 0
    (project / "model" / "gone.py").symlink_to("nowhere.py")
    refused = check(project)
    assert refused.returncode == 1
    assert refused.stderr == "model/gone.py is a broken link: remove it, or add it to .truss_ignore.\n"


def test_make_check_names_what_the_server_does_not_need(bake: Callable[..., BakedProject]) -> None:
    project = bake(preset="sd15").path
    (project / "notes.txt").write_text("mine")
    assert "notes.txt   the server does not need it: add it to .truss_ignore" in check(project).stdout


def test_make_check_knows_the_memory_of_every_accelerator_that_can_be_chosen(bake: Callable[..., BakedProject]) -> None:
    text = (bake(preset="sd15").path / "check.py").read_text("utf-8")
    found: dict[str, float] = {}
    for table in re.findall(r"^GPU_GB \|?= (\{.*?\})", text, re.DOTALL | re.MULTILINE):
        found |= ast.literal_eval(table)
    assert found == {name: gpu.usable_gb for name, gpu in ACCELERATOR_FACTS.items() if not gpu.unusable}
    prices = [price for name in found if (price := ACCELERATOR_FACTS[name].usd_per_hour)]
    assert prices == sorted(prices)
    assert [name for name, gpu in ACCELERATOR_FACTS.items() if not gpu.bfloat16] == ["T4"]


def test_make_check_tells_how_well_the_model_fits(bake: Callable[..., BakedProject]) -> None:
    project = bake(preset="sdxl").path
    config, memory = project / "config.yaml", FACTS["sdxl"].memory
    assert memory

    def said() -> tuple[str, str]:
        # Without torch: nothing is tried on tiny weights, which takes long.
        result = check(project, sys.executable)
        assert result.returncode == 0, result.stderr
        _, first, second, *_ = result.stdout[result.stdout.index("\nAn image") :].splitlines()
        return first, second

    needed = memory.needed(1536**2)
    most = int((15.6 - memory.fixed) / memory.per_megapixel * 1e6)
    assert said() == (
        f"An image of 2359296 pixels (limits.max_pixels) needs {needed:.1f} of the 23.5 GB of the L4 (predicted).",
        f"The next smaller, T4, has 15.6 GB: limits.max_pixels: {most}.",
    )
    # With what it says, and a LoRA to choose from, it still fits the L4.
    text = config.read_text("utf-8").replace("max_pixels: 2359296", f"max_pixels: {most}")
    config.write_text(text, "utf-8")
    assert said()[1] == "The next smaller, T4, has 15.6 GB: enough."
    text = text.replace("    loras: []", "    loras: [{name: ink, scale: 1.0, fused: false}]")
    config.write_text(
        text.replace("    weight_files:\n", "    weight_files:\n      lora-ink: [ink.safetensors]\n"), "utf-8"
    )
    first, second = said()
    assert f" and 1 LoRA to choose from needs {memory.needed(most) + memory.per_lora:.1f} of the 23.5 GB" in first
    assert second.startswith("The next smaller, T4, has 15.6 GB: limits.max_pixels: ")
    text = config.read_text("utf-8").replace("    safety: null", "    safety: checker")
    config.write_text(text.replace("    weight_files:\n", "    weight_files:\n      checker: [x]\n"), "utf-8")
    needs = memory.needed(most) + memory.per_lora + 0.7
    assert f" and 1 LoRA to choose from and the safety checker needs {needs:.1f} of the 23.5 GB" in said()[0]


def test_make_push_replaces_production_and_a_plain_push_does_not(
    bake: Callable[..., BakedProject],
    plane: control_plane.ControlPlane,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = bake(preset="sd15").path
    monkeypatch.setattr(plane, "models", ["my-stable-diffusion"])
    (flags,) = re.findall(r"truss push (--.*) --output json", (project / "Makefile").read_text("utf-8"))
    made = []
    # For that, Truss asks api.baseten.co: see make_push() in test_commands.py.
    for given in ([], [flag for flag in flags.split() if flag != "--wait"]):
        result = truss_push(plane, project, tmp_path, control_plane.KEY, *given)
        assert result.returncode == 0, result.stdout + result.stderr
        made.append(plane.created[-1])
    plain, promoted = made
    assert plain["model_id"] == promoted["model_id"] == "model1"
    assert "environment_name" not in plain
    assert promoted["environment_name"] == "production"
    # Otherwise another accelerator in config.yaml has no effect.
    assert promoted["preserve_env_instance_type"] == "false"


def test_a_wrong_key_pushes_nothing(
    bake: Callable[..., BakedProject], plane: control_plane.ControlPlane, tmp_path: Path
) -> None:
    before = (plane.uploads, len(plane.created))
    result = truss_push(plane, bake(preset="sd15").path, tmp_path, "wrong-key")
    assert result.returncode != 0
    assert "403" in result.stdout + result.stderr
    assert "wrong-key" not in result.stdout + result.stderr
    assert (plane.uploads, len(plane.created)) == before


@dataclasses.dataclass(frozen=True)
class Served:
    """The local server of what was pushed. app: the folder that is /app in the image."""

    url: str
    app: Path

    def predict(self, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/models/model:predict", json={**SMALL, **body}, timeout=600)

    def reload(self) -> httpx.Response:
        """What the platform does after `truss push --watch --watch-hot-reload` brought a change of model/."""
        return httpx.post(f"{self.url}/hot-reload", timeout=60)

    @contextlib.contextmanager
    def edited(self, *edits: tuple[str, str, str]) -> Iterator[None]:
        """Replace text in files of model/, each given as file, old, new; put them back and reload at the end."""
        before = {file: (self.app / "model" / file).read_text("utf-8") for file, _, _ in edits}
        for file, old, new in edits:
            text = (self.app / "model" / file).read_text("utf-8")
            assert text.count(old) == 1, f"{old} is not in {file} once: choose another text to replace"
            (self.app / "model" / file).write_text(text.replace(old, new), "utf-8")
        try:
            yield
        finally:
            for file, text in before.items():
                (self.app / "model" / file).write_text(text, "utf-8")
            assert self.reload().is_success


@pytest.fixture(scope="module")
def served(pushes: dict[str, Push], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Put only the project's local server beside the unpacked archive."""
    push = pushes[DELIVERIES[0]]
    folder = tmp_path_factory.mktemp("served")
    project, temporary, log = folder / "project", folder / "temporary", folder / "log"
    for name, content in push.files().items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(content)
    temporary.mkdir()
    shutil.copytree(push.project.path / "tiny", project / "tiny")
    shutil.copy(push.project.path / "local_server.py", project)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with log.open("w") as output:
        command = [PROJECT_PYTHON, "local_server.py", "--port", "0"]
        process = subprocess.Popen(command, cwd=project, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = url_when_ready(process, log)
        (app,) = temporary.glob("truss-*/app")
        yield Served(url, app)
    finally:
        process.terminate()
        process.wait(timeout=60)


@needs_project
def test_what_was_pushed_makes_an_image(served: Served) -> None:
    response = served.predict()
    assert response.is_success, response.text
    assert response.json()["content_type"] == "image/png"
    assert response.json()["images"][0]["image"].startswith("iVBORw0KGgo")


@needs_project
def test_packages_and_data_are_where_the_image_has_them(served: Served) -> None:
    imports = "import threading\n"
    edits = ("model.py", imports, f"{imports}from mylib.app import NAMES\nfrom model.client import KIND\n")
    use = ("model.py", 'f"image/{inputs.output_format}"', "NAMES + KIND")
    with served.edited(edits, use):
        reloaded = served.reload()
        assert reloaded.is_success, reloaded.text
        assert served.predict().json()["content_type"] == "Ada\nof the model"


@needs_project
def test_a_live_reload_applies_a_change_and_makes_the_same_image(served: Served) -> None:
    before = served.predict().json()
    # One in the model's own file and one in a module that it imports.
    edits = (
        ("model.py", 'f"image/{inputs.output_format}"', '"image/of-another-kind"'),
        ("request.py", "strength has no effect without {needed}", "a changed sentence"),
    )
    with served.edited(*edits):
        reloaded = served.reload()
        assert reloaded.is_success, reloaded.text
        after = served.predict().json()
        assert after["content_type"] == "image/of-another-kind"
        assert after["images"] == before["images"]
        assert "a changed sentence" in served.predict(strength=0.5).json()["error"]
    assert served.predict().json()["content_type"] == "image/png"


@needs_project
@pytest.mark.parametrize("file", ["model.py", "request.py"])
def test_a_live_reload_of_a_broken_change_leaves_the_old_model_answering(served: Served, file: str) -> None:
    before = served.predict().json()
    text = (served.app / "model" / file).read_text("utf-8").splitlines()[0]
    with served.edited((file, text, f"{text}\ndef (")):
        reloaded = served.reload()
        assert reloaded.status_code == 422
        assert "SyntaxError" in reloaded.json()["error"]
        # Also what imports on the way: an image to start from takes the other pipeline.
        assert served.predict().json()["images"] == before["images"]
        start = before["images"][0]["image"]
        assert served.predict(image=start, strength=1.0).is_success
        assert served.predict(strength=0.5).status_code == 400
    assert served.predict().json()["images"] == before["images"]

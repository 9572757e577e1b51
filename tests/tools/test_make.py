"""`make check` and `make push` of a project, which end with the tools."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import control_plane
import pytest
from conftest import TEMPLATE
from hub import Hub, hub
from platforms import PROJECT_PYTHON, Platform

TOOLS = os.environ.get("TOOLS")
pytestmark = [
    pytest.mark.skipif(
        not (PROJECT_PYTHON and TOOLS), reason="PROJECT_PYTHON or TOOLS is not set: `make test` makes both environments"
    ),
]
__all__ = ["hub"]


@pytest.fixture(scope="session")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment in which check.py finds nothing: on tiny weights it takes ten seconds."""
    venv = tmp_path_factory.mktemp("checked")
    (venv / "bin").mkdir()
    (venv / "bin" / "truss").symlink_to(Path(PROJECT_PYTHON).with_name("truss"))
    (venv / "bin" / "python").write_text("#!/bin/sh\ntest $1 = check.py\n")
    (venv / "bin" / "python").chmod(0o755)
    return venv


def make(
    platform: Platform, *arguments: str, venv: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """Run make in the project with existing environments: -o marks them as made, so nothing is installed."""
    venv = venv or Path(PROJECT_PYTHON).parent.parent
    command = ["make", "-o", f"{venv}/.ready", f"VENV={venv}", "-o", f"{TOOLS}/.ready", f"TOOLS={TOOLS}", *arguments]
    around = {name: value for name, value in platform.environment().items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    options = {"cwd": platform.project, "env": {**around, **environment}}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


def test_make_check_asks_nobody_unless_told_to(awake: Platform, hub: Hub) -> None:
    asked = awake.tell()["asked"]
    result = make(awake, "check", HF_ENDPOINT=hub.url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (awake.tell()["asked"], hub.tokens) == (asked, set())


def test_make_check_online_asks_for_what_a_push_needs(awake: Platform, hub: Hub, checked: Path) -> None:
    # Nothing is asked about a model that does not exist yet.
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hub-token", "BASETEN_MODEL_ID": "other"}
    result = make(awake, "check", "ONLINE=1", venv=checked, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line.split(":")[0].split(maxsplit=1) for line in result.stdout.splitlines() if line.startswith("ok ")]
    repo = "weights of stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert [name for _, name in lines] == ["config.yaml", "key and secrets", repo]
    assert hub.tokens == {"Bearer hub-token"}
    hub.gone = "gated"
    result = make(awake, "check", "ONLINE=1", venv=checked, HF_ENDPOINT=hub.url)
    assert result.returncode != 0
    assert "ask for access and set HF_TOKEN" in " ".join(result.stdout.split())


# Truss asks api.baseten.co for a deployment, whatever its remote is. Nothing else of it is changed.
OTHER_ADDRESS = """
import os, sys
if any(argument.endswith("/bin/truss") for argument in sys.orig_argv[:2]):
    import truss.remote.baseten.api
    truss.remote.baseten.api.DEFAULT_API_DOMAIN = os.environ["BASETEN_TRUSS_AUTH_REMOTE_URL"]
"""


@pytest.fixture
def plane() -> Iterator[control_plane.ControlPlane]:
    """A control plane whose model is that of the platform."""
    with control_plane.control_plane() as plane:
        plane.model_id, plane.version_id = "model", "dep1"
        yield plane


def make_push(
    platform: Platform, plane: control_plane.ControlPlane, folder: Path, venv: Path | None = None, **changes: str
) -> Any:
    (folder / "sitecustomize.py").write_text(OTHER_ADDRESS)
    environment = {
        "HOME": str(folder),
        "PYTHONPATH": f"{folder}:{TEMPLATE}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "BASETEN_TRUSS_AUTH_REMOTE_URL": plane.url,
        "BASETEN_TRUSS_AUTH_API_KEY": control_plane.KEY,
        "TRUSS_NO_UPDATE_CHECK": "1",
    }
    (platform.project / "image.png").unlink(missing_ok=True)
    return make(platform, "push", venv=venv, **{**environment, **changes})


def test_make_push_ends_with_the_first_image_and_its_cold_start(
    platform: Platform, plane: control_plane.ControlPlane, tmp_path: Path
) -> None:
    plane.statuses = ["BUILDING", "LOADING_MODEL", "ACTIVE"]
    result = make_push(platform, plane, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (created,) = plane.created
    assert created["environment_name"] == "production"
    found = [line for line in result.stdout.splitlines() if line.startswith("ok ")]
    assert [line.split(":")[0].split(maxsplit=1)[1] for line in found] == ["status", "image"]
    assert "cold start" in found[-1]
    assert "read_weights" in found[-1]
    assert (platform.project / "image.png").read_bytes().startswith(b"\x89PNG")
    assert control_plane.KEY not in result.stdout + result.stderr


def test_make_push_without_a_key_of_its_own_says_how_to_see_the_rest(
    awake: Platform, plane: control_plane.ControlPlane, tmp_path: Path, checked: Path
) -> None:
    result = make_push(awake, plane, tmp_path, checked, BASETEN_API_KEY="")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == (
        "Pushed. For the first image and its cold start, set BASETEN_API_KEY and run: "
        "fast-truss doctor --model model --deployment dep1"
    )
    assert not (awake.project / "image.png").exists()


@pytest.mark.parametrize(
    ("statuses", "key", "said"),
    [(["BUILDING", "BUILD_FAILED"], control_plane.KEY, "status BUILD_FAILED"), (["ACTIVE"], "wrong-key", "403")],
)
def test_make_push_fails_where_the_push_does(
    awake: Platform,
    plane: control_plane.ControlPlane,
    tmp_path: Path,
    checked: Path,
    statuses: list[str],
    key: str,
    said: str,
) -> None:
    plane.statuses = statuses
    result = make_push(awake, plane, tmp_path, checked, BASETEN_TRUSS_AUTH_API_KEY=key)
    assert result.returncode != 0
    assert said in result.stderr
    assert not (awake.project / "image.png").exists()


def test_make_push_fails_where_what_was_pushed_makes_no_image(
    awake: Platform, plane: control_plane.ControlPlane, tmp_path: Path, checked: Path
) -> None:
    awake.set(faults=[["model", 500, "x"]])
    result = make_push(awake, plane, tmp_path, checked)
    assert result.returncode != 0
    assert "failed  image: The model failed" in result.stdout


def test_make_push_asks_for_a_key_where_there_is_none(
    awake: Platform, plane: control_plane.ControlPlane, tmp_path: Path, checked: Path
) -> None:
    nowhere = {"BASETEN_TRUSS_AUTH_REMOTE_URL": "", "BASETEN_TRUSS_AUTH_API_KEY": "", "BASETEN_API_KEY": ""}
    result = make_push(awake, plane, tmp_path, checked, **nowhere)
    assert result.returncode != 0
    # `truss login` asks on a terminal, and here there is none.
    assert "--browser or --api-key" in " ".join((result.stdout + result.stderr).split())
    assert plane.created == []

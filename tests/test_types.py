"""Types, where the code is ours: of the hooks, and of what is emitted, by its own settings."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import PROJECT, TEMPLATE
from platforms import PROJECT_PYTHON

needs_project = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)


def run_mypy(python: str | None, folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [python, "-m", "mypy", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is missing: `make test` installs requirements.txt"
)
def test_hooks_and_tools_are_typed(tmp_path: Path) -> None:
    code = [*sorted((TEMPLATE / "hooks").glob("*.py")), TEMPLATE / "fast_truss"]
    assert len(code) == 3
    result = run_mypy(sys.executable, TEMPLATE, "--strict", "--cache-dir", tmp_path, *code)
    assert result.returncode == 0, result.stdout


# In the environment of the project, as its own `make test` does: types of what it imports count.
@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


@needs_project
def test_what_is_emitted_is_typed(cache: Path) -> None:
    result = run_mypy(PROJECT_PYTHON, PROJECT, "--cache-dir", cache)
    assert result.returncode == 0, result.stdout
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["tool"]["mypy"]
    assert settings["strict"] is True
    assert {"check.py", "model", "packages"} <= set(settings["files"])


@needs_project
def test_a_wrong_type_is_found(tmp_path: Path, cache: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import local_server\n\n\ndef port() -> str:\n    return local_server.free_port()\n")
    result = run_mypy(PROJECT_PYTHON, PROJECT, "--cache-dir", cache, wrong)
    assert "Incompatible return value type" in result.stdout

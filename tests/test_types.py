"""Types, where the code is ours: of the hooks, and of what is emitted, by its own settings."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, TEMPLATE

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy is missing: `make test` installs requirements.txt"
)


def run_mypy(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mypy", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("hook", sorted((TEMPLATE / "hooks").glob("*.py")), ids=lambda hook: hook.name)
def test_the_hooks_are_typed(hook: Path, tmp_path: Path) -> None:
    result = run_mypy(TEMPLATE, "--strict", "--cache-dir", tmp_path, hook)
    assert result.returncode == 0, result.stdout


def test_what_is_emitted_is_typed(tmp_path: Path) -> None:
    result = run_mypy(PROJECT, "--cache-dir", tmp_path)
    assert result.returncode == 0, result.stdout


def test_a_wrong_type_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def length(text: str) -> str:\n    return len(text)\n")
    result = run_mypy(PROJECT, "--cache-dir", tmp_path / "cache", wrong)
    assert "Incompatible return value type" in result.stdout

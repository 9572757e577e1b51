"""Repository hygiene: pre-commit, Dependabot and pins, in the template and in emitted projects."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, TEMPLATE, BakedProject, git

ROOTS = [TEMPLATE, PROJECT]


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"\b(ruff|mypy|pre-commit|truss|httpx|types-[A-Za-z]+)==([\w.]+)", text))


def test_a_pin_is_the_same_wherever_it_stands() -> None:
    files = [file for root in ROOTS for file in (*root.glob("requirements*.txt"), root / ".pre-commit-config.yaml")]
    files += [file for root in ROOTS for file in (root / ".github" / "workflows").glob("*.yml")]
    found: dict[str, str] = {}
    for file in files:
        for name, version in pins(file.read_text("utf-8")).items():
            assert found.setdefault(name, version) == version, f"{name} in {file}"
    assert {"ruff", "mypy", "pre-commit", "truss"} <= set(found)


@pytest.mark.parametrize("root", ROOTS, ids=["template", "emitted"])
def test_dependabot_watches_every_folder_with_pins_in_one_request_each(root: Path) -> None:
    updates = yaml.safe_load((root / ".github" / "dependabot.yml").read_text("utf-8"))["updates"]
    assert all(update["groups"] and update["schedule"]["interval"] == "weekly" for update in updates)
    watched = {(update["package-ecosystem"], update["directory"]) for update in updates}
    assert {("github-actions", "/"), ("pip", "/")} <= watched
    found = {file.parent for file in (*root.glob("requirements*.txt"), *root.glob("*/requirements*.txt"))}
    # And not those of environments that lie here.
    folders = {folder for folder in found if folder == root or not folder.name.startswith((".", "build"))}
    assert {root / directory.strip("/") for ecosystem, directory in watched if ecosystem == "pip"} == folders


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pre-commit keeps the environments of hooks: both have some in common."""
    return tmp_path_factory.mktemp("pre-commit")


@pytest.mark.skipif(
    importlib.util.find_spec("pre_commit") is None,
    reason="pre-commit is missing: `make test` installs requirements.txt",
)
@pytest.mark.parametrize("what", ["template", "emitted"])
def test_pre_commit_finds_nothing(
    what: str,
    repository: Path,
    bake: Callable[..., BakedProject],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if what == "template":
        git(tmp_path, "clone", "--quiet", str(repository), "copy")
    else:
        shutil.copytree(bake().path, tmp_path / "copy")
        git(tmp_path / "copy", "init", "--quiet")
        git(tmp_path / "copy", "add", "--all")
    monkeypatch.setenv("PRE_COMMIT_HOME", str(home))
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files"]
    result = subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, text=True)
    if result.returncode and ("Retrying (" in result.stdout or "No matching distribution" in result.stdout):
        pytest.skip("pip cannot reach its package index, so the hooks cannot be installed")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("Passed") == (7 if what == "template" else 6)

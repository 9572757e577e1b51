"""`make release`, on a temporary repository."""

import datetime
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import BakedProject, git


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Path:
    """The template with one change to release."""
    folder = tmp_path / "fast-truss"
    git(tmp_path, "clone", "--quiet", str(repository), str(folder))
    git(folder, "config", "user.name", "t")
    git(folder, "config", "user.email", "t@localhost")
    changes = folder / "CHANGELOG.md"
    # In place of what is not released yet.
    new = re.sub(r"(?s)\A.*?(?=\n## \d)", "# Changelog\n\n## Unreleased\n\n* New.\n", changes.read_text("utf-8"))
    changes.write_text(new)
    git(folder, "commit", "--quiet", "--all", "-m", "Add a change")
    return folder


def release(folder: Path, version: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "release.py", version], cwd=folder, capture_output=True, text=True)


def output(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_release_sets_the_version_everywhere_and_tags_it(clone: Path, tmp_path: Path) -> None:
    old = tomllib.loads((clone / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    result = release(clone, "98.7.6")
    assert result.returncode == 0, result.stderr
    assert output(clone, "status", "--porcelain") == ""
    assert output(clone, "log", "-1", "--format=%s") == "Release 98.7.6"
    assert output(clone, "rev-parse", "v98.7.6^{commit}") == output(clone, "rev-parse", "HEAD")
    assert set(output(clone, "show", "--name-only", "--format=").splitlines()) == {
        "CHANGELOG.md",
        "README.md",
        "pyproject.toml",
        "templates/version.jinja",
    }
    assert tomllib.loads((clone / "pyproject.toml").read_text("utf-8"))["project"]["version"] == "98.7.6"
    changes = (clone / "CHANGELOG.md").read_text("utf-8")
    assert f"# Changelog\n\n## 98.7.6 ({datetime.date.today()})\n\n* New.\n\n## {old}" in changes
    assert "Unreleased" not in changes
    assert "--checkout v98.7.6" in (clone / "README.md").read_text("utf-8")

    # What a user makes from the tag names it, and installs the tools of that tag.
    url = f"git+file://{clone}"
    command = [sys.executable, "-m", "cookiecutter", url, "--checkout", "v98.7.6", "--no-input", "-o", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    files = BakedProject(tmp_path / "my-stable-diffusion").files()
    assert b"fast-truss 98.7.6 generated this project" in files["README.md"]
    assert f"FAST_TRUSS ?= {url}@v98.7.6\n".encode() in files["Makefile"]


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("1.2", "VERSION is '1.2': use three numbers, such as 1.1.0.\n"),
        ("v98.7.6", "VERSION is 'v98.7.6': use three numbers, such as 1.1.0.\n"),
        ("98.07.6", "VERSION is '98.07.6': use three numbers, such as 1.1.0.\n"),
        ("0.0.9", "use a newer one.\n"),
        ("98.7.5", "The tag v98.7.5 exists: use a newer version.\n"),
    ],
)
def test_a_wrong_version_changes_nothing(clone: Path, version: str, sentence: str) -> None:
    git(clone, "tag", "v98.7.5")
    refused(clone, version, sentence)


def refused(clone: Path, version: str, sentence: str) -> None:
    before = output(clone, "rev-parse", "HEAD"), output(clone, "status", "--porcelain"), output(clone, "tag")
    result = release(clone, version)
    assert result.returncode == 1
    assert result.stderr.endswith(sentence)
    assert len(result.stderr.splitlines()) == 1
    assert before == (output(clone, "rev-parse", "HEAD"), output(clone, "status", "--porcelain"), output(clone, "tag"))


def test_what_is_not_committed_stops_a_release(clone: Path) -> None:
    (clone / "new.txt").write_text("new")
    refused(clone, "98.7.6", "The working tree has changes: commit or stash them first.\n")


def test_a_release_needs_a_section_that_says_what_changed(clone: Path) -> None:
    assert release(clone, "98.7.6").returncode == 0
    refused(clone, "98.7.7", "say there what changed.\n")

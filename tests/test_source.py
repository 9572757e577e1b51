"""What the emitted Makefile and README install fast-truss from: where the template came from."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import JINJA, TEMPLATE, BakedProject, git

MACRO = '<% from "source.jinja" import fast_truss_source %><< fast_truss_source(cookiecutter) >>'


@pytest.mark.parametrize(
    ("answers", "source"),
    [
        ({"_template": "gh:org/fast-truss", "_checkout": None}, "git+https://github.com/org/fast-truss"),
        ({"_template": "gh:org/fast-truss", "_checkout": "v1.0.0"}, "git+https://github.com/org/fast-truss@v1.0.0"),
        ({"_template": "gl:a/b", "_checkout": None}, "git+https://gitlab.com/a/b"),
        ({"_template": "https://github.com/a/b.git", "_checkout": "x"}, "git+https://github.com/a/b.git@x"),
        ({"_template": "git@github.com:a/b.git", "_checkout": None}, "git+ssh://git@github.com/a/b.git"),
        ({"_template": "ssh://git@host/a/b.git", "_checkout": None}, "git+ssh://git@host/a/b.git"),
        ({"_template": "git+file:///a/b.git", "_checkout": "main"}, "git+file:///a/b.git@main"),
        ({"_template": "https://host/b.zip", "_checkout": None}, "https://host/b.zip"),
        ({"_template": "/a folder/fast-truss", "_checkout": None}, "/a folder/fast-truss"),
        # cruft's variables.
        ({"_template": "https://github.com/a/b", "_commit": "0123abc"}, "git+https://github.com/a/b@0123abc"),
        ({"_template": "/a/b", "_commit": "0123abc"}, "git+file:///a/b@0123abc"),
    ],
)
def test_the_source_is_where_the_template_came_from(answers: dict[str, str | None], source: str) -> None:
    assert JINJA.from_string(MACRO).render(cookiecutter=answers) == source


def source_of(project: Path) -> str:
    """Return the source in the Makefile, which is also in the README, once each."""
    (source,) = re.findall(r"^FAST_TRUSS \?= (.*)$", (project / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert (project / "README.md").read_text("utf-8").count(f'pip install "{source}"') == 1
    return source


def check_installs(source: str, folder: Path) -> None:
    """Install the package without its dependencies, which are installed here."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", folder, source], check=True, capture_output=True)
    names = {path.name for path in folder.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"bin", "fast_truss"}
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run(
        [folder / "bin" / "fast-truss", "--help"], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "wake" in result.stdout


def test_a_folder_stays_that_folder(bake: Callable[..., BakedProject], tmp_path: Path) -> None:
    source = source_of(bake().path)
    assert source == str(TEMPLATE)
    check_installs(source, tmp_path / "installed")


@pytest.mark.parametrize("typed", [".", "../{name}"])
def test_a_relative_folder_becomes_absolute(repository: Path, tmp_path: Path, typed: str) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    command = [sys.executable, "-m", "cookiecutter", typed.format(name=clone.name), "--no-input", "-o", "../made"]
    # As a shell does it.
    subprocess.run(command, cwd=clone, env={**os.environ, "PWD": str(clone)}, check=True, capture_output=True)
    assert re.search(rf"(?m)^FAST_TRUSS \?= {clone}$", (tmp_path / "made/my-stable-diffusion/Makefile").read_text())


def test_git_and_cruft_install_what_they_checked_out(repository: Path, tmp_path: Path) -> None:
    url = f"git+file://{repository}"
    command = [sys.executable, "-m", "cookiecutter", url, "--checkout", "main", "--no-input", "-o", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    source = source_of(tmp_path / "my-stable-diffusion")
    assert source == f"{url}@main"
    check_installs(source, tmp_path / "installed")

    folder = tmp_path / "cruft"
    command = [
        sys.executable,
        "-m",
        "cruft",
        "create",
        f"file://{repository}",
        "--no-input",
        "--output-dir",
        str(folder),
    ]
    subprocess.run(command, check=True, capture_output=True)
    commit = json.loads((folder / "my-stable-diffusion" / ".cruft.json").read_text())["commit"]
    source = source_of(folder / "my-stable-diffusion")
    assert source == f"git+file://{repository}@{commit}"
    check_installs(source, tmp_path / "installed-by-cruft")

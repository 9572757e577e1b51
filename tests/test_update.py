"""A project that the user has edited takes what is new in the template, and keeps the edits."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cruft
import pytest
from conftest import CATALOG, BakedProject, git
from cookiecutter.main import cookiecutter

PIN = CATALOG["sd15"]["repos"]["pipeline"]["revision"]
NEW_PIN = "c" * 40


@pytest.fixture
def template(repository: Path, tmp_path: Path) -> Path:
    """A clone of the template's repository, to commit to."""
    clone = tmp_path / "template" / "fast-truss"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    return clone


def edit(file: Path, old: str, new: str, times: int = 1) -> None:
    text = file.read_text("utf-8")
    assert text.count(old) == times, old
    file.write_text(text.replace(old, new), "utf-8")


def move_the_pin(template: Path) -> None:
    """As a maintainer does, and change something that is copied."""
    edit(template / "catalog" / "presets" / "sd15.yaml", PIN, NEW_PIN)
    subprocess.run([sys.executable, "-m", "catalog"], cwd=template, check=True, capture_output=True)
    edit(template / "<<cookiecutter.model_name>>" / "check.py", "import re\n", "import re  # newer\n")
    git(template, "commit", "--quiet", "--all", "-m", "Move the pin")


def test_an_update_moves_the_pin_and_keeps_the_edits(template: Path, tmp_path: Path) -> None:
    # cruft does not remember _hf_variant: what it made has to stay all the same.
    answers = {"preset": "sd15", "_hf_variant": "plain"}
    project = cruft.create(f"file://{template}", output_dir=tmp_path, extra_context=answers)
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "-m", "Generated")
    edit(project / "config.yaml", "num_images: 4", "num_images: 2")
    edit(project / "config.yaml", "predict_concurrency: 1", "predict_concurrency: 2")
    edit(project / "model" / "model.py", '"""The text-to-image model', '"""Our text-to-image model')
    edit(project / "README.md", "# my-stable-diffusion\n", "# Ours\n")
    git(project, "commit", "--quiet", "--all", "-m", "Edited")
    # Nothing of the catalog: it would be old after the next update.
    assert len((project / ".cruft.json").read_text("utf-8").splitlines()) <= 48
    before = BakedProject(project).config
    assert cruft.check(project_dir=project)

    move_the_pin(template)
    assert not cruft.check(project_dir=project)
    assert cruft.update(project_dir=project)

    assert cruft.check(project_dir=project)
    status = ["git", "status", "--porcelain"]
    changed = subprocess.run(status, cwd=project, check=True, capture_output=True, text=True).stdout.split()
    assert sorted(changed) == [
        ".cruft.json",
        "M",
        "M",
        "M",
        "M",
        "M",
        "Makefile",
        "README.md",
        "check.py",
        "config.yaml",
    ]
    assert (project / "README.md").read_text("utf-8").startswith("# Ours\n")
    before["model_cache"][0]["revision"] = NEW_PIN
    assert BakedProject(project).config == before
    assert before["model_metadata"]["pipeline"]["variant"] is None


def test_a_replay_takes_the_newer_files_and_pins(
    template: Path, tmp_path: Path, bake: Callable[..., BakedProject]
) -> None:
    bake(template, preset="sd15", model_name="mine")
    move_the_pin(template)
    replayed = BakedProject(Path(cookiecutter(str(template), replay=True, output_dir=str(tmp_path))))
    assert replayed.config["model_name"] == "mine"
    assert "# newer" in (replayed.path / "check.py").read_text("utf-8")
    assert replayed.config["model_cache"][0]["revision"] == NEW_PIN


def test_an_update_brings_no_demo_to_a_project_that_cannot_load_it(template: Path, tmp_path: Path) -> None:
    project = cruft.create(f"file://{template}", output_dir=tmp_path, extra_context={"preset": "sd15"})
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "-m", "Generated")
    assert not (project / "tiny" / "demo").exists()
    edit(template / "<<cookiecutter.model_name>>" / "tiny" / "demo" / "request.json", "64", "72", times=2)
    git(template, "commit", "--quiet", "--all", "-m", "Train the demo again")
    move_the_pin(template)
    assert cruft.update(project_dir=project)
    assert not (project / "tiny" / "demo").exists()
    assert BakedProject(project).config["model_cache"][0]["revision"] == NEW_PIN

"""The template itself: its variables, its delimiters, and the ways to get it."""

import fnmatch
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ACCELERATOR_FACTS, CONTEXT, FACTS, JINJA, PROJECT, TEMPLATE, BakedProject, git
from cookiecutter.main import cookiecutter
from jinja2 import meta, nodes

RENDERED = [
    PROJECT / "config.yaml",
    PROJECT / "Makefile",
    PROJECT / "README.md",
    PROJECT / "docs" / "tuning.md",
    PROJECT / "tiny" / "pipeline.yaml",
]
HOOKS = sorted((TEMPLATE / "hooks").glob("*.py"))
TAGS = (
    " cookiecutter",
    " fast_truss_source",
    " typed ",
    " (url ",
    " preset",
    " (preset",
    " pattern ",
    " accelerator ",
    " name ",
    " repo",
    " revisions",
    " variant ",
    " version ",
    " when ",
    " {",
)


def prompted() -> set[str]:
    return {name for name in CONTEXT if not name.startswith("_")}


def test_variables_used_are_declared_and_prompted() -> None:
    used = set()
    for file in RENDERED:
        tree = JINJA.parse(file.read_text("utf-8"))
        assert meta.find_undeclared_variables(tree) <= {"cookiecutter"}, file
        used |= {
            node.attr
            for node in tree.find_all(nodes.Getattr)
            if isinstance(node.node, nodes.Name) and node.node.name == "cookiecutter"
        }
    assert used <= set(CONTEXT)
    assert {name for name in used if not name.startswith("_")} == prompted()
    assert set(CONTEXT["__prompts__"]) == prompted()
    assert len(prompted()) <= 6


def test_every_choice_has_a_label_or_speaks_for_itself() -> None:
    labels = CONTEXT["__prompts__"]
    assert list(FACTS) == CONTEXT["preset"]
    assert set(labels["preset"]) == {"__prompt__", *CONTEXT["preset"]}
    assert set(labels["accelerator"]) == {"__prompt__", "preset", *ACCELERATOR_FACTS}
    assert {"__prompt__", *CONTEXT["weights"]} == set(labels["weights"])


@pytest.mark.parametrize("file", [*RENDERED, *HOOKS], ids=lambda file: file.name)
def test_the_delimiter_opens_nothing_but_variables(file: Path) -> None:
    text = file.read_text("utf-8")
    for part in text.split("<<")[1:]:
        assert part.startswith(TAGS), part[:40]


def test_everything_else_is_copied() -> None:
    for file in PROJECT.rglob("*"):
        name = file.relative_to(PROJECT).as_posix()
        if file.is_dir() or "__pycache__" in name:
            continue
        copied = any(fnmatch.fnmatch(name, pattern) for pattern in CONTEXT["_copy_without_render"])
        assert copied == (file not in RENDERED), name


def sourceless(project: BakedProject) -> dict[str, bytes]:
    """Return the files without the one thing that follows from the way in: what the tools are installed from."""
    files = project.files()
    (source,) = re.findall(rb"(?m)^FAST_TRUSS \?= (.*)$", files["Makefile"])
    return {name: content.replace(source, b"SOURCE") for name, content in files.items()}


def test_a_git_url_gives_the_same_project(repository: Path, bake: Callable[..., BakedProject]) -> None:
    assert sourceless(bake(f"file://{repository}")) == sourceless(bake())


def test_a_zip_gives_the_same_project(repository: Path, tmp_path: Path, bake: Callable[..., BakedProject]) -> None:
    archive = tmp_path / "fast-truss.zip"
    git(repository, "archive", "--prefix", "fast-truss-main/", "--output", str(archive), "HEAD")
    assert sourceless(bake(archive)) == sourceless(bake())


def test_cruft_takes_the_template(repository: Path, tmp_path: Path, bake: Callable[..., BakedProject]) -> None:
    import cruft

    project = cruft.create(f"file://{repository}", output_dir=tmp_path, no_input=True)
    files = sourceless(BakedProject(project))
    assert files.pop(".cruft.json")
    assert files == sourceless(bake())
    assert cruft.check(project_dir=project)


@pytest.mark.parametrize("preset", ["sdxl", "sd15"])
def test_with_hooks_refused_it_is_the_same_project_and_holds_the_demo(
    tmp_path: Path, bake: Callable[..., BakedProject], preset: str
) -> None:
    answers = {"preset": preset}
    refused = cookiecutter(
        str(TEMPLATE), no_input=True, extra_context=answers, output_dir=str(tmp_path), accept_hooks=False
    )
    files = BakedProject(Path(refused)).files()
    assert "tiny/demo/model_index.json" in files
    without = {name: content for name, content in files.items() if not name.startswith("tiny/demo/")}
    assert (files if preset == "sdxl" else without) == bake(**answers).files()

"""The READMEs match the catalog, and their files, links and commands exist."""

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from conftest import CATALOG, CONTEXT, PRESETS, PROJECT, TEMPLATE, BakedProject, render

MARKDOWN = [TEMPLATE / "README.md", TEMPLATE / "CONTRIBUTING.md", *sorted((TEMPLATE / "benchmarks").glob("*.md"))]
MARKDOWN += sorted((TEMPLATE / "docs").glob("*.md"))


def test_every_answer_is_documented() -> None:
    readme = (TEMPLATE / "docs" / "options.md").read_text("utf-8")
    for name in CONTEXT:
        if not name.startswith("_"):
            assert f"| `{name}` |" in readme


@pytest.mark.parametrize("preset", PRESETS)
def test_the_readmes_say_that_nothing_filters_the_images(bake: Callable[..., BakedProject], preset: str) -> None:
    emitted = (bake(preset=preset).path / "README.md").read_text("utf-8")
    assert "nothing filters prompts or images" in emitted
    assert ("must filter or review" in emitted) == (preset in ("flux-dev", "flux-kontext-dev"))
    if "safety_checker" in CATALOG[preset]["load_kwargs"]:
        paragraph = (TEMPLATE / "docs" / "presets.md").read_text("utf-8").split("no preset filters its images")[1]
        assert f"`{preset}`" in paragraph.split("are left out")[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_emitted_readme_says_which_preset_takes_no_lora(preset: str) -> None:
    facts = CATALOG[preset]
    assert (f"{facts['title']} cannot take one" in render("docs/tuning.md", preset=preset)) != facts["takes_lora"]


def test_the_readme_sends_an_image_where_the_model_needs_one() -> None:
    for preset in PRESETS:
        readme, needed = render("README.md", preset=preset), preset == "qwen-image-edit-2511"
        assert ('-d \'{"prompt": ' in readme) != needed
        assert ("A request needs one image, or a list of up to 3" in readme) == needed


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", MARKDOWN, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_link_of_the_template_is_dead(file: Path) -> None:
    no_dead_links(file)


def no_dead_links(file: Path) -> None:
    text = file.read_text("utf-8")
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        linked = file.parent / path if path else file
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text("utf-8")), target


def test_the_first_screen_shows_what_one_gets() -> None:
    first = (TEMPLATE / "README.md").read_text("utf-8").split("\n## ")[0]
    assert re.findall(r'src="([^"]+)"', first) == [
        "docs/page-1280-light.png",
        "docs/page-390-dark.png",
        "benchmarks/coldstart.png",
    ]
    version = tomllib.loads((TEMPLATE / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert commands(first) == [f"uvx cookiecutter gh:org/fast-truss --checkout v{version}"]
    assert len(first.splitlines()) < 20


@pytest.mark.parametrize("preset", PRESETS)
def test_the_readmes_are_short(preset: str) -> None:
    assert len((TEMPLATE / "README.md").read_text("utf-8").split()) <= 1100
    assert len(render("README.md", preset=preset).split()) <= 1200


def commands(text: str) -> list[str]:
    """Return what stands in code: lines of blocks, without what explains them, and what is between backticks."""
    blocks = re.findall(r"^(?: {4}|\$ )(\S.*)$", text, re.MULTILINE)
    for fence in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        blocks += fence.splitlines()
    return [re.split(r" #| {2,}", line)[0].strip() for line in [*blocks, *re.findall(r"`([^`\n]+)`", text)]]


def targets(makefile: Path) -> set[str]:
    (phony,) = re.findall(r"^\.PHONY: (help .*)$", makefile.read_text("utf-8"), re.MULTILINE)
    return set(phony.split())


def options(command: click.Command) -> set[str]:
    return {name for each in command.params for name in [*each.opts, *each.secondary_opts] if name.startswith("-")}


def missing_commands(text: str, project: Path, make: set[str]) -> list[str]:
    """Return the commands in text that do not exist: of make, Python, Truss, cruft and cookiecutter."""
    from cookiecutter.cli import main as cookiecutter
    from cruft._cli import app as cruft
    from truss.cli.cli import truss_cli

    missing = []
    for command in commands(text):
        try:
            words = shlex.split(command)
        except ValueError:  # prose, or a part of a command
            continue
        if words[:1] == ["uvx"]:
            words = words[1:]
        rest = words[1:]
        flags = {word.split("=")[0] for word in rest if word.startswith("-")}
        good = True
        if words[:1] == ["make"]:
            good = all(word in make for word in rest if "=" not in word and not word.startswith("-"))
        elif words[:1] in (["truss"], [".venv/bin/truss"]) and rest:
            found = truss_cli.commands.get(rest[0])
            good = found is not None and (isinstance(found, click.Group) or flags <= options(found))
        elif words[:1] == ["cruft"] and rest:
            good = rest[0] in {each.name or each.callback.__name__ for each in cruft.registered_commands}
        elif words[:1] == ["cookiecutter"]:
            good = flags <= options(cookiecutter)
        elif words[:2] == ["python", "-m"]:
            good = (project / rest[1].replace(".", "/")).exists()
        elif words[:1] == ["python"] and rest:
            good = (project / rest[0]).is_file() or (TEMPLATE / rest[0]).is_file()
        if not good:
            missing.append(command)
    return missing


@pytest.mark.parametrize("file", MARKDOWN, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_command_of_the_template_exists(file: Path) -> None:
    make = targets(TEMPLATE / "Makefile") | targets(PROJECT / "Makefile")
    assert missing_commands(file.read_text("utf-8"), PROJECT, make) == []


def test_the_emitted_readme_has_no_dead_link_and_no_command_that_is_missing(
    preset_project: tuple[str, BakedProject],
) -> None:
    project = preset_project[1].path
    no_dead_links(project / "README.md")
    text = (project / "README.md").read_text("utf-8")
    assert missing_commands(text, project, targets(project / "Makefile")) == []
    (table,) = re.findall(r"its one job \|\n(.*?)\n\n", text, re.DOTALL)
    for name in re.findall(r"^\| `([^`]+)` \| .*\|$", table, re.MULTILINE):
        assert (project / name).exists(), name


def test_a_command_that_is_missing_is_found() -> None:
    wrong = ["make tset", "truss push --promot", "truss pusch", "python nowhere.py", "python -m none", "cruft updte"]
    text = "\n".join(["    make demo", *(f"Try `{command}`." for command in wrong)])
    assert missing_commands(text, PROJECT, targets(TEMPLATE / "Makefile")) == wrong

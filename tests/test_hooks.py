"""Bad answers: refused with a sentence each, all at once, and nothing is left behind."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from conftest import CONTEXT, PRESETS, TEMPLATE, BakedProject

GOOD = {**CONTEXT, "preset": "sdxl", "accelerator": "preset"}
HUGE = "x" * 10_000
BAD_NAMES = [
    "",
    " ",
    ".",
    "..",
    "-x",
    "x-",
    "a b",
    "it's",
    'a"b',
    "a\\b",
    "a\nb",
    "a\tb",
    "modèle",
    "模型",
    "a:b",
    "a#b",
    "a$(touch pwned)",
    "`touch pwned`",
    "'''\nimport os\n'''",
    '"""',
    "<< 7 * 7 >>",
    "{{ 7 * 7 }}",
    "x" * 65,
]


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TEMPLATE / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_cookiecutter(folder: Path, **answers: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input", "--output-dir", str(folder)]
    command += [f"{name}={answer}" for name, answer in answers.items()]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("name", ["a", "my-stable-diffusion", "SDXL_1.0", "0", "x" * 64, "true", "null", "1e3"])
def test_a_good_name_round_trips(bake: Callable[..., BakedProject], name: str) -> None:
    assert hook("pre_gen_project").problems({**GOOD, "model_name": name}) == []
    project = bake(model_name=name)
    assert project.path.name == name
    assert project.config["model_name"] == name


@pytest.mark.parametrize("name", [*BAD_NAMES, HUGE, "../evil", "a/b", "/evil"], ids=lambda name: ascii(name)[:20])
def test_a_bad_name_is_one_sentence(name: str) -> None:
    (sentence,) = hook("pre_gen_project").problems({**GOOD, "model_name": name})
    assert sentence.startswith("model_name is ")
    assert "use 1 to 64 letters" in sentence
    assert len(sentence) < 250
    assert "\n" not in sentence


@pytest.mark.parametrize("field", ["preset", "accelerator"])
@pytest.mark.parametrize("answer", ["", "SDXL", "no such", HUGE, "'\"\\\n", "é"], ids=lambda answer: ascii(answer)[:20])
def test_a_bad_choice_is_one_sentence(field: str, answer: str) -> None:
    (sentence,) = hook("pre_gen_project").problems({**GOOD, field: answer})
    assert sentence.startswith(f"{field} is ")
    assert "use one of" in sentence


def test_all_problems_come_at_once() -> None:
    bad = {**GOOD, "model_name": "", "preset": "", "accelerator": ""}
    assert len(hook("pre_gen_project").problems(bad)) == 3


@pytest.mark.parametrize("name", ["../evil", "it's", 'a"""b', "a\\b", "$(touch pwned)", "modèle", "a\nb", "-x"])
def test_a_refusal_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    result = run_cookiecutter(folder, model_name=name)
    assert result.returncode != 0
    assert "model_name is " in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_nested_name_leaves_nothing_behind_either(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    result = run_cookiecutter(folder, model_name="a/b/c")
    assert result.returncode != 0
    assert result.stderr.startswith("model_name is 'a/b/c': ")
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_nested_name_costs_nobody_their_files(tmp_path: Path) -> None:
    mine = tmp_path / "a" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("keep me")
    assert run_cookiecutter(tmp_path, model_name="a/b").returncode != 0
    assert sorted(tmp_path.rglob("*")) == [mine.parent, mine]


@pytest.mark.parametrize("field", ["preset", "accelerator"])
def test_a_choice_that_is_none_is_refused_by_cookiecutter(tmp_path: Path, field: str) -> None:
    result = run_cookiecutter(tmp_path, **{field: "bogus"})
    assert result.returncode != 0
    assert field in result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_the_licence_and_the_next_steps_are_printed(tmp_path: Path, preset: str) -> None:
    result = run_cookiecutter(tmp_path, preset=preset)
    facts = CONTEXT["_presets"][preset]
    assert result.returncode == 0, result.stderr
    assert facts["license_notice"] in result.stdout
    assert "cd my-stable-diffusion" in result.stdout
    assert facts["license_notice"] in (tmp_path / "my-stable-diffusion" / "README.md").read_text("utf-8")

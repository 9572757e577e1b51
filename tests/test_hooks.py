"""Bad answers: refused with a sentence each, all at once, and nothing is left behind."""

import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import coverage
import pytest
from conftest import ACCELERATOR_FACTS, CATALOG, CONTEXT, FACTS, MEASURED, PRESETS, TEMPLATE, BakedProject

GOOD = {name: value[0] if isinstance(value, list) else value for name, value in CONTEXT.items()}
SHA = "0123456789abcdef" * 2 + "01234567"
HUGE = "x" * 10_000
FINE_TUNE = ["hf_repo_id", "hf_revision", "_hf_variant"]
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


@pytest.fixture(scope="module", autouse=True)
def _measured() -> Iterator[None]:
    if not MEASURED:
        yield
        return
    measuring = coverage.Coverage(config_file=MEASURED["COVERAGE_PROCESS_START"], data_suffix=True)
    with measuring.collect():
        yield
    measuring.save()


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


@pytest.mark.parametrize("field", ["preset", "accelerator", "weights"])
@pytest.mark.parametrize("answer", ["", "SDXL", "no such", HUGE, "'\"\\\n", "é"], ids=lambda answer: ascii(answer)[:20])
def test_a_bad_choice_is_one_sentence(field: str, answer: str) -> None:
    (sentence,) = hook("pre_gen_project").problems({**GOOD, field: answer})
    assert sentence.startswith(f"{field} is ")
    assert "use " in sentence


@pytest.mark.parametrize(
    "answer", ["owner", "a/b/c", "/b", "a/", "a b/c", "../evil", "a/..", "é/b", 'a"/b', "<< 7 >>/b", HUGE]
)
def test_a_bad_repository_is_one_sentence(answer: str) -> None:
    (sentence,) = hook("pre_gen_project").problems({**GOOD, "hf_repo_id": answer, "hf_revision": SHA})
    assert sentence.startswith("hf_repo_id is ")
    assert "use owner/name" in sentence
    assert len(sentence) < 250


@pytest.mark.parametrize(
    "answer", ["main", "v1.0", SHA[:7], SHA.upper(), SHA + "0", "g" * 40, SHA + "\n", "'\"\\", HUGE]
)
def test_a_branch_or_tag_is_refused_with_the_command_that_prints_its_commit(answer: str) -> None:
    bad = {**GOOD, "hf_repo_id": "owner/name", "hf_revision": answer}
    (sentence,) = hook("pre_gen_project").problems(bad)
    assert sentence.startswith("hf_revision is ")
    assert "`git ls-remote https://huggingface.co/owner/name`" in sentence


def test_a_repository_needs_a_commit() -> None:
    (sentence,) = hook("pre_gen_project").problems({**GOOD, "hf_repo_id": "owner/name"})
    assert sentence.startswith("hf_revision is ''")


@pytest.mark.parametrize("variant", ["FP16", "int8", "../x", HUGE])
def test_a_bad_variant_is_one_sentence(variant: str) -> None:
    (sentence,) = hook("pre_gen_project").problems({**GOOD, "_hf_variant": variant})
    assert sentence.startswith("_hf_variant is ")


def test_a_variant_of_a_family_without_any_is_refused() -> None:
    (sentence,) = hook("pre_gen_project").problems({**GOOD, "preset": "flux-dev", "_hf_variant": "fp16"})
    assert "has no variants" in sentence


def test_lightning_takes_no_fine_tune() -> None:
    bad = {**GOOD, "preset": "sdxl-lightning", "hf_repo_id": "owner/name", "hf_revision": SHA}
    (sentence,) = hook("pre_gen_project").problems(bad)
    assert "its own vae and unet" in sentence


def test_an_accelerator_that_is_too_small_names_all_that_are_not() -> None:
    (sentence,) = hook("pre_gen_project").problems({**GOOD, "preset": "flux-dev", "accelerator": "L4"})
    start, fitting = sentence.split(": use one of ")
    needed = FACTS["flux-dev"].needs_gb
    assert start == f"accelerator is 'L4': it has 23.5 GB for a model, and flux-dev needs about {needed:.1f}"
    memory = {name: gpu.memory_gb for name, gpu in ACCELERATOR_FACTS.items() if gpu.usable_gb >= needed}
    # V100 has kernels no more.
    assert fitting.removesuffix(".").split(", ") == sorted(memory, key=memory.get)


@pytest.mark.parametrize("preset", ["sd15", "flux-dev", "no-such-preset"])
def test_an_accelerator_without_kernels_is_refused_with_the_reason(preset: str) -> None:
    sentence = hook("pre_gen_project").problems({**GOOD, "preset": preset, "accelerator": "V100"})[-1]
    assert sentence.startswith(
        "accelerator is 'V100': torch 2.13.0 is built for CUDA 13, which has no kernels for it: "
    )
    assert "A100" in sentence
    assert "V100" not in sentence.split("use one of")[1]


def test_an_accelerator_without_bfloat16_is_refused_where_the_preset_needs_it() -> None:
    (sentence,) = hook("pre_gen_project").problems({**GOOD, "preset": "sana-sprint", "accelerator": "T4"})
    assert sentence.startswith("accelerator is 'T4': sana-sprint runs in bfloat16, which it lacks: use one of L4, ")


def test_a_fine_tune_end_to_end(bake: Callable[..., BakedProject]) -> None:
    project = bake(hf_repo_id="owner/name", hf_revision=SHA)
    (pipeline,) = project.config["model_cache"]
    assert (pipeline["repo_id"], pipeline["revision"]) == ("owner/name", SHA)
    assert "unet/diffusion_pytorch_model.safetensors" in pipeline["allow_patterns"]
    assert project.config["model_metadata"]["pipeline"]["variant"] is None
    assert "https://huggingface.co/owner/name" in (project.path / "README.md").read_text("utf-8")


def test_a_variant_can_be_said_on_the_command_line(tmp_path: Path) -> None:
    result = run_cookiecutter(tmp_path, hf_repo_id="owner/name", hf_revision=SHA, _hf_variant="bf16")
    assert result.returncode == 0, result.stderr
    assert "model.bf16.safetensors" in (tmp_path / "my-stable-diffusion" / "config.yaml").read_text("utf-8")


def said_command(output: str, before: str) -> list[str]:
    """Return the arguments of the command that output names after the line before."""
    program, template, *arguments = shlex.split(output.split(before)[1].splitlines()[1 if before.endswith(":") else 0])
    assert (program, template) == ("cookiecutter", str(TEMPLATE))
    return arguments


@pytest.mark.parametrize("variant", ["preset", "fp16"])
def test_the_closing_message_names_the_other_file_names_and_how_to_get_them(tmp_path: Path, variant: str) -> None:
    result = run_cookiecutter(tmp_path, hf_repo_id="owner/name", hf_revision=SHA, _hf_variant=variant)
    before = "For names with .fp16, run:" if variant == "preset" else "plain names such as model.safetensors, run:"
    arguments = said_command(result.stdout, before)
    config = tmp_path / "my-stable-diffusion" / "config.yaml"
    first = config.read_text("utf-8")
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    second = config.read_text("utf-8")
    assert ("model.fp16.safetensors" in first, "model.fp16.safetensors" in second) == (
        variant == "fp16",
        variant == "preset",
    )


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"model_name": "a", "preset": "sd15", "accelerator": "A10G", "weights": "weights", "hf_revision": SHA},
        {"hf_repo_id": "owner/name", "hf_revision": SHA, "_hf_variant": "plain"},
    ],
    ids=len,
)
def test_the_closing_message_says_what_was_made_and_how_to_make_it_again(
    tmp_path: Path, answers: dict[str, str]
) -> None:
    result = run_cookiecutter(tmp_path, **answers)
    facts = CATALOG[answers.get("preset", "sdxl")]
    assert f" on {answers.get('accelerator', facts['accelerator'])} (24 GB)." in result.stdout
    assert f", delivered by {answers.get('weights', 'model_cache')}\n" in result.stdout
    assert f"Commit: {answers.get('hf_revision', facts['repos']['pipeline']['revision'])}," in result.stdout
    # One screen.
    assert len(result.stdout.splitlines()) <= 30
    again = tmp_path / "again"
    again.mkdir()
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), *said_command(result.stdout, "project again:")]
    subprocess.run(command, check=True, capture_output=True, cwd=again)
    name = answers.get("model_name", "my-stable-diffusion")
    assert BakedProject(again / name).files() == BakedProject(tmp_path / name).files()


def test_a_refusal_keeps_the_other_answers(tmp_path: Path) -> None:
    answers = {"model_name": "my model", "preset": "sd15", "accelerator": "L4", "weights": "weights"}
    result = run_cookiecutter(tmp_path, **answers)
    arguments = said_command(result.stderr, "To keep the other answers: ")
    assert "model_name=..." in arguments
    arguments = [argument.replace("model_name=...", "model_name=mine") for argument in arguments]
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    config = BakedProject(tmp_path / "mine").config
    assert config["resources"]["accelerator"] == "L4"
    assert "weights" in config


def test_cookiecutter_runs_code_in_an_answer_before_any_hook_as_the_readme_says(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"<< cycler.__init__.__globals__['os'].system('touch {mark}') >>"
    assert run_cookiecutter(tmp_path, model_name=f"x{code}").returncode == 0
    assert mark.exists()
    assert "never bake from answers that others wrote" in (TEMPLATE / "docs" / "options.md").read_text("utf-8")


def test_a_fine_tune_says_whose_license_holds() -> None:
    text = hook("post_gen_project").farewell({**GOOD, "hf_repo_id": "owner/name"})
    assert "see https://huggingface.co/owner/name. For SDXL 1.0 itself: " in text
    assert "hf_access_token" in text


def test_a_gated_preset_says_where_the_token_goes(tmp_path: Path) -> None:
    result = run_cookiecutter(tmp_path, preset="flux-dev")
    readme = (tmp_path / "my-stable-diffusion" / "README.md").read_text("utf-8")
    for text in (result.stdout, readme):
        assert "hf_access_token" in text
        assert "NOT allowed" in text


@pytest.mark.parametrize("field", ["model_name", "preset", "accelerator", "weights", *FINE_TUNE])
@pytest.mark.parametrize("answer", [5, None, ["sdxl"], {"a": "b"}, True])
def test_an_answer_that_is_no_text_is_one_sentence(field: str, answer: object) -> None:
    (sentence,) = hook("pre_gen_project").problems({**GOOD, field: answer})
    assert sentence.startswith(f"{field} is ")
    assert "use text" in sentence


def test_all_problems_come_at_once() -> None:
    bad = {
        **GOOD,
        "model_name": "",
        "preset": "",
        "accelerator": "",
        "weights": "",
        "hf_repo_id": "x",
        "_hf_variant": "x",
    }
    assert len(hook("pre_gen_project").problems(bad)) == 7


@pytest.mark.parametrize("name", ["../evil", "it's", 'a"""b', "a\\b", "$(touch pwned)", "modèle", "a\nb", "-x"])
def test_a_refusal_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    result = run_cookiecutter(folder, model_name=name)
    assert result.returncode != 0
    assert "model_name is " in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.rglob("*")) == [folder]


@pytest.mark.parametrize("name", ["a/b/c", "a/../b", "a/../../evil", "a/../a/b"])
def test_a_nested_name_leaves_nothing_behind_either(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    result = run_cookiecutter(folder, model_name=name)
    assert result.returncode != 0
    assert result.stderr.startswith(f"model_name is '{name}': ")
    assert list(tmp_path.rglob("*")) == [folder]


@pytest.mark.parametrize(
    ("name", "says_where"), [("a/b", True), ("a/b", False), ("a/../../evil", True), ("../evil/b", True)]
)
def test_the_folders_of_a_nested_name_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says_where: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    project = out / name
    project.mkdir(parents=True)
    monkeypatch.chdir(project)
    # cruft does not say where it generates.
    hook("pre_gen_project").remove_nested_folders(name, str(out) if says_where else None)
    assert list(tmp_path.rglob("*")) == [out]


@pytest.mark.parametrize(("name", "output"), [("a", "."), ("../a", "."), ("../a", None), ("/a", None)])
def test_what_cookiecutter_removes_itself_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, output: str | None
) -> None:
    folder = tmp_path / "out" / "a"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder.parent)
    where = str(folder.parent) if output else None
    hook("pre_gen_project").remove_nested_folders(name, where)
    assert folder.is_dir()


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
def test_the_license_and_the_next_steps_are_printed(tmp_path: Path, preset: str) -> None:
    result = run_cookiecutter(tmp_path, preset=preset)
    facts = CATALOG[preset]
    assert result.returncode == 0, result.stderr
    assert facts["license_notice"] in result.stdout
    assert "cd my-stable-diffusion" in result.stdout
    assert facts["license_notice"] in (tmp_path / "my-stable-diffusion" / "README.md").read_text("utf-8")

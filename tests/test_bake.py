"""What comes out: the files, their syntax, and the config as Truss reads it."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import truss
import yaml
from conftest import ACCELERATOR_FACTS, ACCELERATORS, CATALOG, DELIVERIES, PROJECT, BakedProject, render_config
from truss.base.truss_config import Accelerator, TrussConfig

Bake = Callable[..., BakedProject]

MANIFEST = {
    ".github/dependabot.yml",
    ".github/workflows/push.yml",
    ".github/workflows/wake.yml",
    ".gitignore",
    ".pre-commit-config.yaml",
    ".truss_ignore",
    "Makefile",
    "README.md",
    "check.py",
    "config.yaml",
    "docs/tuning.md",
    "examples/backend.py",
    "local_server.py",
    "model/__init__.py",
    "model/arguments.py",
    "model/guard.py",
    "model/images.py",
    "model/mask.py",
    "model/model.py",
    "model/pipelines.py",
    "model/progress.py",
    "model/request.py",
    "packages/cold_start/__init__.py",
    "packages/cold_start/lean_imports.py",
    "packages/cold_start/phases.py",
    "packages/cold_start/pipeline.py",
    "packages/cold_start/proof.py",
    "packages/cold_start/read_ahead.py",
    "packages/cold_start/safety.py",
    "packages/cold_start/signatures.py",
    "packages/cold_start/warm_up.py",
    "packages/cold_start/weights.py",
    "packages/image_build.py",
    "packages/lora_files.py",
    "packages/metrics.py",
    "packages/pipeline_settings.py",
    "pyproject.toml",
    "requirements-dev.txt",
    "tests/conftest.py",
    "tests/test_bad_input.py",
    "tests/test_load.py",
    "tests/test_server.py",
    "tiny/make.py",
    "tiny/pipeline.yaml",
    "trial.py",
}
# Of projects that are shaped like SDXL.
DEMO = {
    "tiny/demo/model_index.json",
    "tiny/demo/request.json",
    "tiny/demo/scheduler/scheduler_config.json",
    "tiny/demo/text_encoder/config.json",
    "tiny/demo/text_encoder/model.safetensors",
    "tiny/demo/text_encoder_2/config.json",
    "tiny/demo/text_encoder_2/model.safetensors",
    "tiny/demo/tokenizer/merges.txt",
    "tiny/demo/tokenizer/tokenizer_config.json",
    "tiny/demo/tokenizer/vocab.json",
    "tiny/demo/tokenizer_2/merges.txt",
    "tiny/demo/tokenizer_2/tokenizer_config.json",
    "tiny/demo/tokenizer_2/vocab.json",
    "tiny/demo/unet/config.json",
    "tiny/demo/unet/diffusion_pytorch_model.safetensors",
    "tiny/demo/vae/config.json",
    "tiny/demo/vae/diffusion_pytorch_model.safetensors",
}
RENDERED = {"Makefile", "README.md", "config.yaml", "docs/tuning.md", "tiny/pipeline.yaml"}


def test_the_manifest_is_exact(preset_project: tuple[str, BakedProject]) -> None:
    preset, project = preset_project
    assert set(project.files()) == MANIFEST | (DEMO if CATALOG[preset]["demo"] else set())


def test_a_team_can_read_what_it_gets(preset_project: tuple[str, BakedProject]) -> None:
    files = {name: content for name, content in preset_project[1].files().items() if name not in DEMO}
    assert len(files) <= 45
    assert sum(content.count(b"\n") for name, content in files.items() if name.endswith(".py")) <= 4000


def test_the_demo_is_of_the_pipelines_that_it_can_be_loaded_as() -> None:
    index = json.loads((PROJECT / "tiny" / "demo" / "model_index.json").read_text("utf-8"))
    assert {facts["pipeline"] for facts in CATALOG.values() if facts["demo"]} == {index["_class_name"]}


def test_what_is_not_rendered_is_copied_byte_for_byte(preset_project: tuple[str, BakedProject]) -> None:
    for name, content in preset_project[1].files().items():
        same = content == (PROJECT / name).read_bytes()
        assert same == (name not in RENDERED), name


def test_no_tag_is_left(preset_project: tuple[str, BakedProject]) -> None:
    for name in RENDERED:
        # <</w> is a token of the tiny tokenizers.
        text = (preset_project[1].path / name).read_text("utf-8").replace("<</w>", "")
        assert not re.search(r"<<|>>|<%|%>|<#|#>|cookiecutter", text), name


def test_every_data_file_parses(preset_project: tuple[str, BakedProject]) -> None:
    for name, content in preset_project[1].files().items():
        if name.endswith(".safetensors"):
            continue
        text = content.decode("utf-8")
        assert not text or text.endswith("\n"), name
        assert not text.endswith("\n\n"), name
        if name.endswith((".yaml", ".yml")):
            assert yaml.safe_load(text), name
        if name.endswith(".toml"):
            assert tomllib.loads(text), name
        if name.endswith(".json"):
            assert json.loads(text), name


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_truss_accepts_the_config_without_a_warning(
    bake: Bake, caplog: pytest.LogCaptureFixture, delivery: str
) -> None:
    project = bake(weights=delivery)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = TrussConfig.from_yaml(project.path / "config.yaml")
    assert not caplog.records
    assert config.to_dict() == render_config(weights=delivery).to_dict()
    assert config.model_name == "my-stable-diffusion"
    assert config.environment_variables["HF_HUB_OFFLINE"] == "1"
    # A replica with a dead GPU: Baseten asks every 10 s, and by default waits for half an hour.
    health = config.runtime.health_checks
    assert 10 <= health.stop_traffic_threshold_seconds <= 60 < health.restart_threshold_seconds <= 120
    # A cold start may take its time.
    assert health.startup_threshold_seconds is None


def test_accelerators_are_those_that_truss_knows() -> None:
    known = {accelerator.value for accelerator in Accelerator if not accelerator.name.startswith("_")}
    assert set(ACCELERATORS) == known | {"preset"}
    assert ["preset", *ACCELERATOR_FACTS] == ACCELERATORS


def test_ruff_finds_nothing_in_a_fresh_project(bake: Bake) -> None:
    """In one: no Python file is rendered, so all of them have the same."""
    run_ruff(bake().path)


def test_ruff_finds_nothing_in_the_template() -> None:
    run_ruff(PROJECT.parent)


def run_ruff(folder: Path) -> None:
    for arguments in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def test_two_bakes_are_the_same(bake: Bake) -> None:
    assert bake().files() == bake().files()


def test_the_image_can_be_built_from_every_project(preset_project: tuple[str, BakedProject], tmp_path: Path) -> None:
    project = preset_project[1]
    copy = Path(shutil.copytree(project.path, tmp_path / "copy"))
    config = project.config
    # With it Truss would ask the Hub for the list of files.
    del config["model_cache"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    # As `truss image build-context` does, which takes two seconds to start.
    truss.load(str(copy)).build_docker_build_context(tmp_path / "context")
    requirements = (tmp_path / "context" / "requirements.txt").read_text().splitlines()
    assert set(config["requirements"]) <= set(requirements)
    dockerfile = (tmp_path / "context" / "Dockerfile").read_text()
    assert "compileall" in dockerfile
    assert not (tmp_path / "context" / "tests").exists()


def test_pins_are_exact(bake: Bake) -> None:
    assert all(re.fullmatch(r"[a-z_-]+==[0-9.]+", pin) for pin in bake().config["requirements"])

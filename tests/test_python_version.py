"""The emitted Makefile refuses an unsupported Python at once, and says how to get another."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import BakedProject

# A Python that reports another version.
PRETENDER = """#!/bin/sh
exec "{python}" -c 'import sys; sys.version_info = ({version}, 0); exec(sys.argv[1])' "$2"
"""


@pytest.mark.parametrize(("version", "good"), [("3, 10", False), ("3, 11", True), ("3, 14", True), ("3, 15", False)])
@pytest.mark.parametrize("command", ["test", "app"])
def test_another_python_is_named_before_anything_is_made(
    bake: Callable[..., BakedProject], tmp_path: Path, command: str, version: str, good: bool
) -> None:
    python = tmp_path / "python"
    python.write_text(PRETENDER.format(python=sys.executable, version=version))
    python.chmod(0o755)
    result = subprocess.run(
        ["make", command, f"PYTHON={python}"], cwd=bake().path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode != 0  # the pretender cannot make an environment either
    told = f"{python} is Python {version.replace(', ', '.')}, but this project needs 3.11 to 3.14" in result.stderr
    assert told is not good
    assert ("make PYTHON=" in result.stderr and "uv python install" in result.stderr) is not good

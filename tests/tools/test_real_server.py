"""One cold start of the real local Truss server, from the command line: other tests use an instant one."""

import io
import json
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image
from platforms import PROJECT_PYTHON, Platform
from rich.console import Console

from fast_truss import generation

pytestmark = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)
FAST = ["--width", "64", "--height", "64", "--num-inference-steps", "2", "--seed", "7"]


def test_a_real_cold_start_is_woken_measured_and_streamed(
    real_platform: Platform, awake: Platform, tmp_path: Path
) -> None:
    result = real_platform.run("coldstart", "--yes", "--json")
    assert result.returncode == 0, result.stderr
    names = [phase["name"] for phase in json.loads(result.stdout)["phases"]]
    assert {"READINESS", "server_start", "import_torch", "read_weights", "first image"} <= set(names)
    files = [tmp_path / name for name in ("whole.png", "streamed.png")]
    for file, terminal in zip(files, (False, True), strict=True):
        screen = Console(file=io.StringIO(), force_terminal=terminal)
        with mock.patch.object(generation, "console", return_value=screen):
            made = real_platform.run("generate", "a boat", *FAST, "-o", str(file))
        assert made.returncode == 0, made.stderr
        assert "(seed 7)" in made.stdout
    with Image.open(files[0]) as image:
        assert image.size == (64, 64)
    assert files[0].read_bytes() == files[1].read_bytes()
    # The fake server of the other tests has the same fields and errors.
    told = [json.loads(platform.run("fields", "--json").stdout) for platform in (real_platform, awake)]
    assert told[0] == told[1]
    bad = [platform.post("predict", prompt="x", width=63) for platform in (real_platform, awake)]
    assert {response.status_code for response in bad} == {400}
    assert all("`width`" in response.json()["error"] for response in bad), [response.text for response in bad]

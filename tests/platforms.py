"""Fixtures of the fake platform: see fake_baseten.py."""

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
from conftest import TEMPLATE, BakedProject

PROJECT_PYTHON = os.environ.get("PROJECT_PYTHON")
SMALL = {"prompt": "a boat", "num_inference_steps": 1, "width": 64, "height": 64, "seed": 1}


def url_when_ready(process: subprocess.Popen, log: Path) -> str:
    """Wait for what `local_server.py` prints to log when it is ready. Returns its address."""
    for _ in range(1200):
        if "Ready." in log.read_text() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert "Ready." in log.read_text(), log.read_text()
    return re.search(r"curl (http://127\.0\.0\.1:\d+)", log.read_text())[1]


class Platform:
    """The fake Baseten: see fake_baseten.py."""

    def __init__(self, url: str, project: Path) -> None:
        self.url = url
        self.project = project
        self.http = httpx.Client(timeout=600, headers={"Authorization": "Api-Key good-key"})

    def set(self, **changes: Any) -> None:
        assert self.http.post(f"{self.url}/_platform", json=changes).is_success

    def tell(self) -> dict[str, Any]:
        return self.http.get(f"{self.url}/_platform").json()

    def post(self, action: str, **body: Any) -> httpx.Response:
        return self.http.post(f"{self.url}/model-model/production/{action}", json=body)

    def environment(self, base: str = "") -> dict[str, str]:
        """Return the environment in which the client speaks to this platform, and not to Baseten."""
        return {
            **os.environ,
            "PYTHONPATH": str(TEMPLATE),
            "BASETEN_API_KEY": "good-key",
            "BASETEN_MODEL_ID": "model",
            "BASETEN_INFERENCE_URL": (base or self.url) + "/model-{model_id}",
            "BASETEN_MANAGEMENT_URL": base or self.url,
            # Its locks, too, are not those of another platform on this machine.
            "TMPDIR": str(self.project.parent),
        }

    def run(self, *arguments: str, key: str = "good-key", model: str = "model", url: str = "", **more: str) -> Any:
        """Run the command line, in this process: starting one takes a second. The key must not show in what it writes.

        more: of the environment.
        """
        base = {**self.environment(url), "BASETEN_API_KEY": key, "BASETEN_MODEL_ID": model, "COLUMNS": "200", **more}
        return run_here(arguments, base, self.project, key)


def run_here(arguments: Sequence[str], environment: dict[str, str], folder: Path, key: str = "good-key") -> Any:
    from fast_truss import cli

    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "argv", ["fast-truss", *arguments]),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    assert key not in stdout.getvalue() + stderr.getvalue()
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def start(project: Path, folder: Path, real: bool) -> Iterator[Platform]:
    command = [sys.executable, str(TEMPLATE / "tests" / "fake_baseten.py"), str(project), *([str(folder)] * real)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        port = process.stdout.readline().strip()
        assert port, (folder / "log").read_text()
        platform = Platform(f"http://127.0.0.1:{port}", project)
        for _ in range(300):
            try:
                platform.tell()
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield platform
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="session")
def running(bake: Callable[..., BakedProject], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Its replicas are there at once: see model_servers.py."""
    yield from start(bake(preset="sd15").path, tmp_path_factory.mktemp("platform"), real=False)


@pytest.fixture(scope="session")
def real_platform(bake: Callable[..., BakedProject], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Its replicas are the real local Truss server, which takes ten seconds to start."""
    if PROJECT_PYTHON is None:
        pytest.skip("PROJECT_PYTHON is not set: `make test` makes that environment and names it")
    yield from start(bake(preset="sd15").path, tmp_path_factory.mktemp("real"), real=True)


@pytest.fixture
def platform(running: Platform) -> Platform:
    """At zero, with nothing wrong."""
    running.set(scale_to_zero=True, clean=True)
    return running


@pytest.fixture
def awake(running: Platform) -> Platform:
    """With a replica, and nothing wrong."""
    # A wake that was stuck stays so, and its next predict would wait for ever.
    stuck = running.tell()["status"] != "ACTIVE"
    running.set(clean=True, **({"scale_to_zero": True} if stuck else {}))
    assert running.post("predict", **SMALL).is_success
    return running

"""Serves an emitted project, with tiny weights, as its own local_server.py does. The fixture serves the preset sd15."""

import contextlib
import dataclasses
import importlib.util
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from conftest import BakedProject
from platforms import PROJECT_PYTHON, SMALL

PREDICT = "/v1/models/model:predict"
READY = "/v1/models/model"
FAULTY_PIPELINE = Path(__file__).parent / "faulty_pipeline.py"


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server: its process, its log, and a client."""

    process: subprocess.Popen
    log: Path
    http: httpx.Client

    def predict(self, **body: Any) -> httpx.Response:
        return self.http.post(PREDICT, json={**SMALL, **body})

    def ready(self) -> int:
        return self.http.get(READY).status_code

    def wait_for_log(self, text: str) -> None:
        for _ in range(1200):
            if text in self.log.read_text():
                return
            time.sleep(0.05)
        pytest.fail(f"{text!r} is not in the log:\n{self.log.read_text()}")


@dataclasses.dataclass(frozen=True)
class Serving:
    """The app of the project as local_server.py lays it out, to be served as it is or changed."""

    local_server: ModuleType
    app: Path
    weights: Path

    def copy(self, folder: Path, predict_concurrency: int = 1, faulty: bool = False, **pipeline: Any) -> Path:
        """Return a copy of the app. pipeline: what to change in model_metadata.pipeline."""
        app = folder / "app"
        shutil.copytree(self.app, app, ignore=shutil.ignore_patterns("context"))
        config = yaml.safe_load((app / "config.yaml").read_text("utf-8"))
        config["runtime"]["predict_concurrency"] = predict_concurrency
        config["model_metadata"]["pipeline"].update(pipeline)
        (app / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
        if faulty:
            # Outside model/, whose lines are counted.
            shutil.copy(FAULTY_PIPELINE, app)
            model = app / "model" / "model.py"
            text = model.read_text("utf-8")
            assert text.count("from cold_start.pipeline import") == 1
            model.write_text(text.replace("from cold_start.pipeline import", "from faulty_pipeline import"), "utf-8")
        return app

    @contextlib.contextmanager
    def start(self, app: Path, wait: bool = True) -> Iterator[Server]:
        port = self.local_server.free_port()
        url = f"http://127.0.0.1:{port}"
        log = app.parent / "log"
        with log.open("w") as output:
            process = self.local_server.start(app, port, stdout=output, stderr=subprocess.STDOUT)
        try:
            if wait:
                self.local_server.wait_until_ready(process, url)
            with httpx.Client(base_url=url, timeout=120) as http:
                yield Server(process, log, http)
        except RuntimeError as error:
            pytest.fail(f"{error}\n{log.read_text()}")
        finally:
            self.local_server.stop(process)


@pytest.fixture(scope="session")
def serving(bake: Callable[..., BakedProject], tmp_path_factory: pytest.TempPathFactory) -> Serving:
    project, folder = bake(preset="sd15").path, tmp_path_factory.mktemp("serving")
    spec = importlib.util.spec_from_file_location("emitted_local_server", project / "local_server.py")
    local_server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(local_server)
    # It starts everything with the Python that it runs on. That must be the image's here.
    local_server.sys = SimpleNamespace(executable=PROJECT_PYTHON)
    weights = local_server.find_weights("tiny", folder)
    app = folder / "app"
    local_server.build_app(app, weights)
    return Serving(local_server, app, weights)

"""One local Truss server for the session, on tiny weights or those of --weights."""

import base64
import dataclasses
import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

import local_server

# Threads of torch that wait for each other make tiny images many times slower beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server: its URL, its log file, and its first answer."""

    url: str
    log: Path
    first_answer: dict[str, Any]

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=60)

    def predict(self, body: Any) -> requests.Response:
        return requests.post(self.url + local_server.PREDICT, json=body, timeout=600)


def file_of(image: Image.Image, file_format: str = "PNG", keep: int | None = None) -> str:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return base64.b64encode(buffer.getvalue()[:keep]).decode()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--weights", default="tiny", help="tiny, real or a folder: see local_server.py")


@pytest.fixture(scope="session")
def config() -> dict[str, Any]:
    return local_server.read_config()


@pytest.fixture(scope="session")
def pipeline(config: dict[str, Any]) -> dict[str, Any]:
    return config["model_metadata"]["pipeline"]


@pytest.fixture(scope="session")
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local_server.find_weights(request.config.getoption("--weights"), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def app(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server") / "app"
    local_server.build_app(folder, weights)
    return folder


@pytest.fixture(scope="session")
def server(app: Path, small: dict[str, Any]) -> Iterator[Server]:
    port = local_server.free_port()
    log = app / "server.log"
    with log.open("w") as output:
        process = local_server.start(app, port, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        local_server.wait_until_ready(process, url)
        first_answer = requests.post(url + local_server.PREDICT, json=small, timeout=600).json()
        yield Server(url, log, first_answer)
    except RuntimeError as error:
        pytest.fail(f"{error}\n{log.read_text()}")
    finally:
        local_server.stop(process)


@pytest.fixture(scope="session")
def small(config: dict[str, Any]) -> dict[str, Any]:
    """The example of the config, as a CPU answers it quickly."""
    example = config["model_metadata"]["example_model_input"]
    return {**example, "num_images": 1, "num_inference_steps": 2, "width": 64, "height": 64}

"""What load() reads, what it leaves alone, and how it fails."""

import fnmatch
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import local_server

RunInApp = Callable[..., subprocess.CompletedProcess]

# Loads the model from the folder in argv[1], and prints what it did on one line of JSON.
LOAD = """
import json, sys
touched = []
NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")
sys.addaudithook(lambda event, _: touched.append(event) if event in NETWORK else None)
import yaml
from model.model import Model

class Downloaded:
    calls = 0
    def block_until_download_complete(self):
        Downloaded.calls += 1

config = yaml.safe_load(open("config.yaml"))
config["model_metadata"]["pipeline"]["weights_dir"] = sys.argv[1]
model = Model(config=config, data_dir=None, secrets={}, lazy_data_resolver=Downloaded())
assert not model.is_healthy()
touched.clear()
model.load()
parts = model._pipeline.components
import torch
modules = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
print(json.dumps({
    "network": touched,
    "waited": Downloaded.calls,
    "healthy": model.is_healthy(),
    "components": sorted(name for name, part in parts.items() if part is not None),
    "devices": sorted({str(p.device.type) for m in modules for p in m.parameters()}),
    "dtypes": sorted({str(p.dtype) for m in modules for p in m.parameters()}),
}))
"""


def exact_files(pipeline: dict[str, Any]) -> list[str]:
    return [pattern for pattern in pipeline["weight_files"] if "*" not in pattern]


@pytest.fixture(scope="module")
def loaded(run_in_app: RunInApp, weights: Path) -> dict[str, Any]:
    result = run_in_app(LOAD, str(weights))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_load_waits_for_the_download_and_touches_no_network(loaded: dict[str, Any]) -> None:
    assert loaded["waited"] == 1
    assert loaded["network"] == []
    assert loaded["healthy"] is True


def test_load_takes_only_what_is_cached(loaded: dict[str, Any], pipeline: dict[str, Any]) -> None:
    folders = {pattern.split("/")[0] for pattern in pipeline["weight_files"] if "/" in pattern}
    assert set(loaded["components"]) == folders


@pytest.mark.gpu
def test_load_puts_half_precision_on_the_gpu(loaded: dict[str, Any], pipeline: dict[str, Any]) -> None:
    assert loaded["devices"] == ["cuda"]
    assert loaded["dtypes"] == [f"torch.{pipeline['dtype']}"]


def test_the_cache_fetches_every_file_of_the_pipeline_and_no_other(
    config: dict[str, Any], pipeline: dict[str, Any], weights: Path, request: pytest.FixtureRequest
) -> None:
    (repo,) = config["model_cache"]
    assert pipeline["weight_files"] == repo["allow_patterns"]
    assert pipeline["weights_dir"] == f"/app/model_cache/{repo['volume_folder']}"
    files = [file.relative_to(weights).as_posix() for file in weights.rglob("*") if file.is_file()]
    visible = [file for file in files if not file.startswith(".")]
    # The rule of model_cache: only * is special, and it crosses /. fnmatch does the same here.
    fetched = {file for pattern in repo["allow_patterns"] for file in fnmatch.filter(visible, pattern)}
    # A folder of the user's own may hold more, such as a README.
    if request.config.getoption("--weights") == "tiny":
        assert fetched == set(visible)
    assert all(fnmatch.filter(visible, pattern) for pattern in repo["allow_patterns"])


@pytest.mark.parametrize("name", exact_files(local_server.read_config()["model_metadata"]["pipeline"]))
def test_load_needs_each_file_that_is_cached(weights: Path, tmp_path: Path, name: str) -> None:
    from model.weights import WeightsError, check_weights

    broken = link_copy(weights, tmp_path)
    (broken / name).unlink()
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        check_weights(broken, exact_files(local_server.read_config()["model_metadata"]["pipeline"]))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_weight_file_is_named(weights: Path, tmp_path: Path, pipeline: dict[str, Any], damage: str) -> None:
    from model.weights import WeightsError, check_weights

    broken, name = break_weights(weights, tmp_path, pipeline, damage)
    with pytest.raises(WeightsError, match=f"{name} is truncated"):
        check_weights(broken, [name])


@pytest.mark.parametrize(("damage", "sentence"), [("missing", "is missing from"), ("truncated", "is truncated")])
def test_the_server_stops_with_a_sentence_when_a_weight_file_is(
    app: Path, weights: Path, tmp_path: Path, pipeline: dict[str, Any], damage: str, sentence: str
) -> None:
    broken, name = break_weights(weights, tmp_path, pipeline, damage)
    copy = tmp_path / "app"
    shutil.copytree(app, copy, ignore=shutil.ignore_patterns("context", "server.log"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model_metadata"]["pipeline"]["weights_dir"] = str(broken)
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    process = local_server.start(copy, local_server.free_port(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        log = process.communicate(timeout=300)[0].decode()
    finally:
        local_server.stop(process)
    assert any(name in line and sentence in line for line in log.splitlines()), log


def break_weights(weights: Path, tmp_path: Path, pipeline: dict[str, Any], damage: str) -> tuple[Path, str]:
    """Return a copy of the weights with one damaged file, and the name of that file."""
    name = next(file for file in exact_files(pipeline) if file.endswith(".safetensors"))
    broken = link_copy(weights, tmp_path)
    content = (broken / name).read_bytes()
    (broken / name).unlink()
    damaged = {"truncated": content[:-100], "garbage": b"\xff" * 1000, "empty": b""}
    if damage != "missing":
        (broken / name).write_bytes(damaged[damage])
    return broken, name


def link_copy(weights: Path, tmp_path: Path) -> Path:
    """A copy that shares the bytes: real weights are large."""
    return Path(shutil.copytree(weights, tmp_path / "weights", copy_function=lambda a, b: Path(b).symlink_to(a)))

"""What load() reads, what it does not touch, and how it fails."""

import fnmatch
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import local_server

# Loads the model in a process with only the imports of a start, warms it up, and prints what it did as JSON.
LOAD = """
import asyncio, json, sys
touched = []
NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")
from model.model import SETTINGS, Model

class Downloaded:
    calls = 0
    def block_until_download_complete(self):
        Downloaded.calls += 1

model = Model(Downloaded(), SETTINGS.model_copy(update={"warm_up": True}))
assert not asyncio.run(model.is_healthy())
sys.addaudithook(lambda event, _: touched.append(event) if event in NETWORK else None)
model.load()
network, compiler = list(touched), "torch._inductor.compile_fx" in sys.modules
import torch
parts = model._pipelines[None].components
modules = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
print(json.dumps({
    "network": network,
    "compiler": compiler,
    "waited": Downloaded.calls,
    "healthy": asyncio.run(model.is_healthy()),
    "phases": list(model._cold_start.phases),
    "cuda": torch.cuda.is_available(),
    "components": sorted(name for name, part in parts.items() if part is not None),
    "devices": sorted({p.device.type for m in modules for p in m.parameters()}),
    "dtypes": sorted({str(p.dtype) for m in modules for p in m.parameters()}),
}))
"""


def exact_files(pipeline: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the folder and the path of each file that the config names."""
    return [
        (folder, pattern)
        for folder, patterns in pipeline["weight_files"].items()
        for pattern in patterns
        if "*" not in pattern
    ]


@pytest.fixture(scope="module")
def loaded(app: Path, config: dict[str, Any]) -> dict[str, Any]:
    # As the server finds model/ and /packages in the image, with the environment that config.yaml declares.
    environment = {"PATH": "", "HOME": str(app), "PYTHONPATH": f"{app}:{app / 'packages'}"}
    result = subprocess.run(
        [sys.executable, "-c", LOAD],
        cwd=app,
        env={**environment, **config["environment_variables"]},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_load_waits_for_the_download_and_touches_no_network(loaded: dict[str, Any]) -> None:
    assert loaded["waited"] == 1
    assert loaded["network"] == []
    assert loaded["healthy"] is True


def test_warming_up_is_the_last_phase_of_load(loaded: dict[str, Any]) -> None:
    assert loaded["phases"][-2:] == ["read_weights", "warm_up"]


def test_no_compiler_is_imported_unless_config_yaml_asks(loaded: dict[str, Any], pipeline: dict[str, Any]) -> None:
    assert loaded["compiler"] is (pipeline["compile"] is not None)


def test_load_takes_only_what_is_cached(loaded: dict[str, Any], pipeline: dict[str, Any]) -> None:
    folders = {pattern.split("/")[0] for pattern in pipeline["weight_files"]["pipeline"] if "/" in pattern}
    assert set(loaded["components"]) == folders | set(pipeline["components"])


@pytest.mark.gpu
def test_load_puts_half_precision_on_the_gpu(loaded: dict[str, Any], pipeline: dict[str, Any]) -> None:
    if not loaded["cuda"]:
        pytest.skip("needs a CUDA device, and torch finds none")
    assert loaded["devices"] == ["cuda"]
    packed = any((part["file"] or "").endswith(".gguf") for part in pipeline["components"].values())
    assert loaded["dtypes"] == [f"torch.{pipeline['dtype']}", *(["torch.uint8"] if packed else [])]


def test_the_cache_fetches_every_file_of_the_pipeline_and_no_other(
    pipeline: dict[str, Any], weights: Path, request: pytest.FixtureRequest
) -> None:
    cached = {repo["folder"]: repo for repo in local_server.cached_repos()}
    loras = {f"lora-{lora['name']}" for lora in pipeline["loras"]}
    assert set(cached) == set(pipeline["weight_files"]) == {"pipeline", *pipeline["components"], *loras}
    for folder, patterns in pipeline["weight_files"].items():
        assert patterns == cached[folder]["allow_patterns"]
        files = [file.relative_to(weights / folder) for file in (weights / folder).rglob("*") if file.is_file()]
        visible = [file.as_posix() for file in files if not file.as_posix().startswith(".")]
        # In model_cache only * is special, and it also matches /. fnmatch does the same here.
        fetched = {file for pattern in patterns for file in fnmatch.filter(visible, pattern)}
        # A user's folder may contain more, such as a README.
        if request.config.getoption("--weights") == "tiny":
            assert fetched == set(visible)
        assert all(fnmatch.filter(visible, pattern) for pattern in patterns)


@pytest.mark.parametrize(("folder", "name"), exact_files(local_server.read_config()["model_metadata"]["pipeline"]))
def test_load_needs_each_file_that_is_cached(weights: Path, tmp_path: Path, folder: str, name: str) -> None:
    from cold_start.weights import WeightsError, check_weights
    from model.model import SETTINGS

    broken = link_copy(weights, tmp_path)
    (broken / folder / name).unlink()
    with pytest.raises(WeightsError, match=f"{name} is missing"):
        check_weights(SETTINGS.model_copy(update={"weights_dir": str(broken)}))


@pytest.mark.parametrize("name", ["large.safetensors", "small.json"])
def test_check_hashes_finds_one_wrong_byte(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from cold_start import weights as model_weights
    from model.model import SETTINGS

    # The hashes of a file that contains "abc": `git hash-object`, and `sha256sum`.
    known = {
        "small.json": "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f",
        "large.safetensors": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    manifest, file = tmp_path / "manifest.json", tmp_path / name
    manifest.write_text(json.dumps({"pointers": [{"file_name": str(file), "hash": known[name]}]}))
    monkeypatch.setattr(model_weights, "MANIFEST", manifest)
    settings = SETTINGS.model_copy(update={"weights_dir": str(weights), "check_hashes": True})
    file.write_text("abc")
    model_weights.check_weights(settings)
    file.write_text("abd")
    with pytest.raises(model_weights.WeightsError, match=f"{name} is corrupt"):
        model_weights.check_weights(settings)
    model_weights.check_weights(settings.model_copy(update={"check_hashes": False}))


def test_the_server_stops_with_a_sentence_when_a_weight_file_is_missing(
    app: Path, weights: Path, tmp_path: Path
) -> None:
    broken = link_copy(weights, tmp_path)
    file = min(broken.glob("*/*/*.safetensors"))
    file.unlink()
    copy = tmp_path / "app"
    shutil.copytree(app, copy, ignore=shutil.ignore_patterns("context", "server.log"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model_metadata"]["pipeline"]["weights_dir"] = str(broken)
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    process = local_server.start(copy, local_server.free_port(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        log = process.communicate(timeout=300)[0]
    finally:
        local_server.stop(process)
    said: list[str] = []
    local_server.copy_log(io.BytesIO(log), said)
    # A pattern such as transformer/* does not say that it needs weights: then the library that reads them does.
    assert file.parent.name in said[-1], log
    assert re.search("is missing from|cannot be read from", said[-1])


def link_copy(weights: Path, tmp_path: Path) -> Path:
    """Return a copy made of symbolic links: real weights are large."""

    def link(source: str, target: str) -> None:
        Path(target).symlink_to(source)

    return Path(shutil.copytree(weights, tmp_path / "weights", copy_function=link))

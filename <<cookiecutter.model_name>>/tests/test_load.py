"""What load() reads, and what it does not touch."""

import fnmatch
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import local_server

# Loads the model in a process with only the imports of a start, warms it up, and prints what it did as JSON.
LOAD = """
import asyncio, json, sys
touched = []
NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")
from model.model import SETTINGS, Model

waited = []
download = type("Download", (), {"block_until_download_complete": lambda self: waited.append(1)})()
model = Model(download, SETTINGS.model_copy(update={"warm_up": True}))
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
    "waited": len(waited),
    "healthy": asyncio.run(model.is_healthy()),
    "phases": list(model._cold_start.phases),
    "cuda": torch.cuda.is_available(),
    "components": sorted(name for name, part in parts.items() if part is not None),
    "placed": sorted({f"{p.device.type} {p.dtype}" for m in modules for p in m.parameters()}),
}))
"""


@pytest.fixture(scope="module")
def loaded(app: Path, config: dict[str, Any]) -> dict[str, Any]:
    # As the server finds model/ and /packages in the image, with the environment that config.yaml declares.
    env = {"PATH": "", "HOME": str(app), "PYTHONPATH": f"{app}:{app / 'packages'}", **config["environment_variables"]}
    command = [sys.executable, "-c", LOAD]
    result = subprocess.run(command, cwd=app, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_load_waits_for_the_download_and_touches_no_network(loaded: dict[str, Any], pipeline: dict[str, Any]) -> None:
    assert loaded["waited"] == 1
    assert loaded["network"] == []
    assert loaded["healthy"] is True
    assert loaded["phases"][-2:] == ["read_weights", "warm_up"]
    # No compiler is imported unless config.yaml asks for it.
    assert loaded["compiler"] is (pipeline["compile"] is not None)


def test_load_takes_only_what_is_cached(loaded: dict[str, Any], pipeline: dict[str, Any]) -> None:
    folders = {pattern.split("/")[0] for pattern in pipeline["weight_files"]["pipeline"] if "/" in pattern}
    assert set(loaded["components"]) == folders | set(pipeline["components"])


def test_load_puts_all_on_one_device_in_its_dtype(loaded: dict[str, Any], pipeline: dict[str, Any]) -> None:
    device, dtype = ("cuda", pipeline["dtype"]) if loaded["cuda"] else ("cpu", pipeline["cpu_dtype"])
    # transformers keeps some layers of T5 in float32, and a GGUF file's are packed.
    kinds = (dtype, "float32", *["uint8"] * (".gguf" in str(pipeline["components"])))
    assert f"{device} torch.{dtype}" in loaded["placed"]
    assert set(loaded["placed"]) <= {f"{device} torch.{kind}" for kind in kinds}


def test_the_cache_fetches_each_file_and_no_other(pipeline: dict[str, Any], weights: Path, request: Any) -> None:
    cached = {repo["folder"]: repo for repo in local_server.cached_repos()}
    more = [f"lora-{lora['name']}" for lora in pipeline["loras"]] + [pipeline["safety"]] * bool(pipeline["safety"])
    assert set(cached) == set(pipeline["weight_files"]) == {"pipeline", *pipeline["components"], *more}
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

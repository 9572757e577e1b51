"""What load() reads, what it leaves alone, and how it fails."""

import fnmatch
import json
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import local_server

RunInApp = Callable[..., subprocess.CompletedProcess]

# Loads the model, warms it up, and prints what it did on one line of JSON.
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
network = list(touched)
parts = model._pipelines[None].components
import torch
modules = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
print(json.dumps({
    "network": network,
    "waited": Downloaded.calls,
    "healthy": asyncio.run(model.is_healthy()),
    "phases": list(model._cold_start.phases),
    "compiler": "torch._inductor.compile_fx" in sys.modules,
    "components": sorted(name for name, part in parts.items() if part is not None),
    "devices": sorted({str(p.device.type) for m in modules for p in m.parameters()}),
    "dtypes": sorted({str(p.dtype) for m in modules for p in m.parameters()}),
}))
"""


# Loads the pipeline from the folder in argv[1] as it is, for requests with an image, and with a LoRA.
PARTS = """
import json, sys
from pathlib import Path
import torch
opened = []
is_pickle = lambda path: str(path).endswith((".bin", ".ckpt", ".pt"))
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" and is_pickle(args[0]) else None)
from cold_start.pipeline import read_pipeline
from cold_start.weights import WeightsError
from model.model import SETTINGS
from model.pipelines import on_same_weights
from pipeline_settings import Lora
sys.path.append(sys.argv[2])
from tiny.make import make_lora

def weights_of(pipeline):
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return {(p.data_ptr(), str(p.dtype)) for module in modules for p in module.parameters()}

settings = SETTINGS.model_copy(update={"weights_dir": sys.argv[1], "loras": []})
plain = read_pipeline(settings, "cpu")
found = {}
# Where each tensor is put, without a GPU: a device that holds no bytes takes its place.
placed = read_pipeline(settings, "meta")
tensors = [t for p in placed.components.values() if hasattr(p, "parameters") for t in (*p.parameters(), *p.buffers())]
found["devices"] = sorted({tensor.device.type for tensor in tensors})
before = weights_of(plain)
found["shared"] = all(weights_of(on_same_weights(plain, other)) == before for other in settings.others)
found["shared"] &= weights_of(plain) == before
name, path, added = make_lora(Path(sys.argv[1]), plain, "style")
try:
    style = Lora(name="style", scale=0.5, fused=True)
    fused = read_pipeline(settings.model_copy(update={"loras": [style]}), "cpu")
    before, after = (p.components[name].get_submodule(path).weight.float().cpu() for p in (plain, fused))
    found["fused"] = torch.allclose(after, before + 0.5 * added, rtol=1e-2, atol=1e-2)
    found["left"] = [n for n, _ in fused.components[name].named_parameters() if "lora" in n]
except WeightsError as error:
    found["refused"] = str(error)
found["traps in place"] = []
for folder in sorted({file.parent for file in Path(sys.argv[1], "pipeline").rglob("*.safetensors")}):
    hidden = [file.rename(file.with_name(f"{file.name}.hidden")) for file in folder.glob("*.safetensors*")]
    try:
        read_pipeline(settings, "cpu")
        found["traps in place"].append(folder.name)
    except WeightsError as error:
        assert folder.name in str(error)
    for file in hidden:
        file.rename(file.with_suffix(""))
index = Path(sys.argv[1], "pipeline", "model_index.json")
names = json.loads(index.read_text())
index.unlink()
index.write_text(json.dumps({**names, "scheduler": ["trap", "Trap"]}))
try:
    read_pipeline(settings, "cpu")
    found["traps in place"].append("scheduler")
except Exception:
    pass  # what counts is whether the code ran: see mark
found["opened"] = opened
print(json.dumps(found))
"""


# Loads the pipeline from each of the folders in argv, and prints the sentence that each ends in.
SENTENCES = """
import json, sys
from cold_start.pipeline import read_pipeline
from model.model import SETTINGS
from cold_start.weights import WeightsError, check_weights

found = []
for folder in sys.argv[1:]:
    settings = SETTINGS.model_copy(update={"weights_dir": folder})
    try:
        check_weights(settings)
        read_pipeline(settings, "cpu")
        found.append("")
    except WeightsError as error:
        found.append(str(error))
print(json.dumps(found))
"""


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def set_traps(weights: Path, mark: Path) -> None:
    """Put pickles beside each safetensors file, under the names that libraries try, and code beside the scheduler."""
    for file in list(weights.rglob("*.safetensors")):
        names = {file.with_suffix(".bin").name, "pytorch_model.bin", "diffusion_pytorch_model.bin", "model.ckpt"}
        for name in names:
            # A link to a real file: it must not be written through.
            file.with_name(name).unlink(missing_ok=True)
            file.with_name(name).write_bytes(pickle.dumps(Trap(mark)))
    (weights / "scheduler" / "trap.py").write_text(f"open({str(mark)!r}, 'w')\nclass Trap: pass\n")


def exact_files(pipeline: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the folder and the path of each file that the config names."""
    return [
        (folder, pattern)
        for folder, patterns in pipeline["weight_files"].items()
        for pattern in patterns
        if "*" not in pattern
    ]


@pytest.fixture(scope="module")
def loaded(run_in_app: RunInApp, weights: Path) -> dict[str, Any]:
    result = run_in_app(LOAD, str(weights))
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


@pytest.fixture(scope="module")
def parts(run_in_app: RunInApp, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lora")
    copy, mark = link_copy(weights, folder, without="lora-*"), folder / "mark"
    set_traps(copy / "pipeline", mark)
    result = run_in_app(PARTS, str(copy), str(local_server.PROJECT))
    assert result.returncode == 0, result.stderr
    return {**json.loads(result.stdout.splitlines()[-1]), "ran": mark.exists()}


def test_no_pickle_is_opened_and_no_code_of_the_weights_runs(parts: dict[str, Any]) -> None:
    assert parts["opened"] == []
    assert parts["traps in place"] == []
    assert parts["ran"] is False


def test_requests_with_an_image_share_the_weights(parts: dict[str, Any]) -> None:
    assert parts["shared"] is True


def test_a_lora_is_fused_or_refused(parts: dict[str, Any]) -> None:
    if "refused" in parts:
        assert "cannot take a LoRA" in parts["refused"]
        return
    assert parts["fused"] is True
    assert parts["left"] == []


def test_every_component_is_put_on_the_device_that_was_asked(parts: dict[str, Any]) -> None:
    assert parts["devices"] == ["meta"]


@pytest.mark.gpu
def test_load_puts_half_precision_on_the_gpu(loaded: dict[str, Any], pipeline: dict[str, Any]) -> None:
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
        # The rule of model_cache: only * is special, and it crosses /. fnmatch does the same here.
        fetched = {file for pattern in patterns for file in fnmatch.filter(visible, pattern)}
        # A folder of the user's own may hold more, such as a README.
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


def test_damaged_weights_are_named(run_in_app: RunInApp, weights: Path, tmp_path: Path) -> None:
    kinds = ("truncated", "garbage", "empty", "without a tensor")
    broken = [break_weights(weights, tmp_path / kind, kind) for kind in kinds]
    # A text encoder is read by another library, which would fill the gap with random numbers.
    broken.append(break_weights(weights, tmp_path / "encoder", "without a tensor", "text_encoder*"))
    result = run_in_app(SENTENCES, *[str(folder) for folder, _ in broken])
    assert result.returncode == 0, result.stderr
    for (_, file), sentence in zip(broken, json.loads(result.stdout.splitlines()[-1]), strict=True):
        assert sentence.startswith(f"{file.parent.name} cannot be read from")
        assert sentence.endswith("check patterns and commit in config.yaml.")


@pytest.mark.parametrize("name", ["large.safetensors", "small.json"])
def test_check_hashes_finds_one_wrong_byte(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from cold_start import weights as model_weights
    from model.model import SETTINGS

    # What git and Hugging Face say of a file that holds "abc": `git hash-object`, and `sha256sum`.
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


# A pattern such as transformer/* does not say that it needs weights: then the one who reads them does.
@pytest.mark.parametrize(
    ("damage", "sentence"), [("missing", "is missing from|cannot be read from"), ("truncated", "cannot be read from")]
)
def test_the_server_stops_with_a_sentence_when_a_weight_file_is(
    app: Path, weights: Path, tmp_path: Path, damage: str, sentence: str
) -> None:
    broken, file = break_weights(weights, tmp_path, damage)
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
    assert any(file.parent.name in line and re.search(sentence, line) for line in log.splitlines()), log


def break_weights(weights: Path, target: Path, damage: str, component: str = "*") -> tuple[Path, Path]:
    """Return a copy of the weights with one damaged file, and the path of that file under it."""
    broken = link_copy(weights, target)
    # A component may have a folder of its own, beside the pipeline.
    file = min((broken / "pipeline").glob(f"{component}/*.safetensors"), default=None)
    file = file or min(broken.glob(f"{component}/*.safetensors"))
    content = file.read_bytes()
    file.unlink()
    damaged = {"truncated": content[:-100], "garbage": b"\xff" * 1000, "empty": b""}
    if damage == "without a tensor":
        # The header is JSON after 8 bytes with its length. A tensor under another name is one that is missing.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        name = next(name for name in sorted(header) if name.endswith("weight")).encode()
        damaged[damage] = content.replace(b'"%s"' % name, b'"%s"' % (b"x" * len(name)), 1)
    if damage != "missing":
        file.write_bytes(damaged[damage])
    return broken, file.relative_to(broken)


def link_copy(weights: Path, tmp_path: Path, without: str = "") -> Path:
    """A copy that shares the bytes: real weights are large."""

    def link(source: str, target: str) -> None:
        Path(target).symlink_to(source)

    ignore = shutil.ignore_patterns(without)
    return Path(shutil.copytree(weights, tmp_path / "weights", copy_function=link, ignore=ignore))

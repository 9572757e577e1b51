"""What load() reads, what it does not touch, and how it fails."""

import fnmatch
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import local_server

# How a file is damaged, and in which component. A text encoder is read by another library, which would fill the gap
# with random numbers.
DAMAGE = [(kind, "*") for kind in ("truncated", "garbage", "empty", "without a tensor")]
DAMAGE.append(("without a tensor", "text_encoder*"))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def set_traps(weights: Path, mark: Path) -> None:
    """Put pickles beside each safetensors file, under names that libraries try, and code beside the scheduler."""
    for file in list(weights.rglob("*.safetensors")):
        names = {file.with_suffix(".bin").name, "pytorch_model.bin", "diffusion_pytorch_model.bin", "model.ckpt"}
        for name in names:
            # Do not write through a link to a real file.
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
def broken(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Return copies of the weights with one damaged file each, and that file."""
    return [break_weights(weights, tmp_path_factory.mktemp("broken"), *damage) for damage in DAMAGE]


@pytest.fixture(scope="module")
def loaded(
    app: Path,
    config: dict[str, Any],
    weights: Path,
    broken: list[tuple[Path, Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Return what loading.py finds: to import what a start needs takes longer than all that it does."""
    folder = tmp_path_factory.mktemp("trapped")
    trapped, mark = link_copy(weights, folder, without="lora-*"), folder / "mark"
    set_traps(trapped / "pipeline", mark)
    # As the server finds model/ and /packages in the image, with the environment that config.yaml declares.
    environment = {"PATH": "", "HOME": str(app), "PYTHONPATH": f"{app}:{app / 'packages'}"}
    command = [sys.executable, Path(__file__).with_name("loading.py"), local_server.PROJECT, trapped]
    result = subprocess.run(
        [*map(str, command), *(str(each) for each, _ in broken)],
        cwd=app,
        env={**environment, **config["environment_variables"]},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return {**json.loads(result.stdout.splitlines()[-1]), "ran": mark.exists()}


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


def test_no_pickle_is_opened_and_no_code_of_the_weights_runs(loaded: dict[str, Any]) -> None:
    assert loaded["opened"] == []
    assert loaded["traps in place"] == []
    assert loaded["ran"] is False


def test_requests_with_an_image_share_the_weights(loaded: dict[str, Any]) -> None:
    assert loaded["shared"] is True


def test_a_lora_is_fused_or_refused(loaded: dict[str, Any]) -> None:
    if "refused" in loaded:
        assert "cannot take a LoRA" in loaded["refused"]
        return
    assert loaded["fused"] is True
    assert loaded["left"] == []


def test_every_component_is_put_on_the_device_that_was_asked(loaded: dict[str, Any]) -> None:
    assert loaded["placed"] == ["meta"]


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


def test_damaged_weights_are_named(loaded: dict[str, Any], broken: list[tuple[Path, Path]]) -> None:
    for (_, file), sentence in zip(broken, loaded["sentences"], strict=True):
        assert sentence.startswith(f"{file.parent.name} cannot be read from")
        assert sentence.endswith("check patterns and commit in config.yaml.")


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
    broken, file = break_weights(weights, tmp_path, "missing")
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


def break_weights(weights: Path, target: Path, damage: str, component: str = "*") -> tuple[Path, Path]:
    """Return a copy of the weights with one damaged file, and the path of that file in it."""
    broken = link_copy(weights, target)
    # A component may have its own folder, beside the pipeline.
    file = min((broken / "pipeline").glob(f"{component}/*.safetensors"), default=None)
    file = file or min(broken.glob(f"{component}/*.safetensors"))
    content = file.read_bytes()
    file.unlink()
    damaged = {"truncated": content[:-100], "garbage": b"\xff" * 1000, "empty": b""}
    if damage == "without a tensor":
        # The header is JSON after 8 bytes with its length. A renamed tensor is a missing one.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        name = next(name for name in sorted(header) if name.endswith("weight")).encode()
        damaged[damage] = content.replace(b'"%s"' % name, b'"%s"' % (b"x" * len(name)), 1)
    if damage != "missing":
        file.write_bytes(damaged[damage])
    return broken, file.relative_to(broken)


def link_copy(weights: Path, tmp_path: Path, without: str = "") -> Path:
    """Return a copy made of symbolic links: real weights are large."""

    def link(source: str, target: str) -> None:
        Path(target).symlink_to(source)

    ignore = shutil.ignore_patterns(without)
    return Path(shutil.copytree(weights, tmp_path / "weights", copy_function=link, ignore=ignore))

"""Weights are files of somebody else: damaged ones are named, and nothing of them runs. Requests share them."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cold_start.weights
import pytest
from cold_start.pipeline import read_pipeline
from cold_start.weights import WeightsError, check_weights
from conftest import FAMILIES, Make
from model.pipelines import on_same_weights
from safetensors import safe_open

PICKLES = (".bin", ".ckpt", ".pt")
# How a file is damaged, and in which component. A text encoder is read by another library, which would fill the gap
# with random numbers.
DAMAGE = [(kind, "*") for kind in ("truncated", "garbage", "empty", "without a tensor")]
DAMAGE.append(("without a tensor", "text_encoder*"))
OPENED: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith(PICKLES):
        OPENED.append(str(arguments[0]))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def set_traps(pipeline: Path, mark: Path) -> None:
    """Put pickles beside each safetensors file, under names that libraries try, and code beside the scheduler."""
    for file in list(pipeline.rglob("*.safetensors")):
        for name in {file.with_suffix(".bin").name, "pytorch_model.bin", "diffusion_pytorch_model.bin", "model.ckpt"}:
            file.with_name(name).write_bytes(pickle.dumps(Trap(mark)))
    (pipeline / "scheduler" / "trap.py").write_text(f"open({str(mark)!r}, 'w')\nclass Trap: pass\n")


@pytest.mark.parametrize("preset", FAMILIES)
def test_no_pickle_is_opened_and_no_code_of_the_weights_runs(
    preset: str, settings_of: Make, copy_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, mark = copy_of(preset), tmp_path / "mark"
    set_traps(folder / "pipeline", mark)
    settings = settings_of(preset, folder)
    # It cannot be taken back, and so listens to the end of this process.
    sys.addaudithook(_audit)
    OPENED.clear()
    read_pipeline(settings, "cpu")
    for model in {file.parent for file in (folder / "pipeline").rglob("*.safetensors")}:
        hidden = [file.rename(file.with_name(f"{file.name}.hidden")) for file in model.glob("*.safetensors*")]
        with pytest.raises(WeightsError, match=model.name):
            read_pipeline(settings, "cpu")
        for file in hidden:
            file.rename(file.with_suffix(""))
    index = folder / "pipeline" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text("utf-8")), "scheduler": ["trap", "Trap"]}), "utf-8")
    with pytest.raises(Exception):  # noqa: B017  # what counts is whether the code ran
        read_pipeline(settings, "cpu")
    assert OPENED == []
    assert not mark.exists()


@pytest.mark.parametrize("preset", FAMILIES)
def test_damaged_weights_are_named(preset: str, settings_of: Make, copy_of: Callable[[str], Path]) -> None:
    folder = copy_of(preset)
    for kind, component in DAMAGE:
        # A component may have its own folder, beside the pipeline.
        file = min([*folder.glob(f"pipeline/{component}/*.safetensors"), *folder.glob(f"{component}/*.safetensors")])
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, file, kind))
        with pytest.raises(WeightsError) as raised:
            read_pipeline(settings_of(preset, folder), "cpu")
        assert str(raised.value).startswith(f"{file.parent.name} cannot be read from"), kind
        assert str(raised.value).endswith("check patterns and commit in config.yaml."), kind
        file.write_bytes(whole)
    read_pipeline(settings_of(preset, folder), "cpu")


def damaged(whole: bytes, file: Path, kind: str) -> bytes:
    if kind == "without a tensor":
        # A tensor under another name is one that is missing.
        with safe_open(file, "pt") as opened:
            name = min(name for name in opened.keys() if name.endswith("weight")).encode()  # noqa: SIM118
        return whole.replace(b'"%s"' % name, b'"%s"' % (b"x" * len(name)), 1)
    return {"truncated": whole[:-100], "garbage": b"\xff" * 1000, "empty": b""}[kind]


@pytest.mark.parametrize("preset", FAMILIES)
def test_each_file_that_is_named_is_needed(preset: str, settings_of: Make, copy_of: Callable[[str], Path]) -> None:
    folder = copy_of(preset)
    settings = settings_of(preset, folder)
    check_weights(settings)
    for part, patterns in settings.weight_files.items():
        for name in (pattern for pattern in patterns if "*" not in pattern):
            hidden = (folder / part / name).rename(folder / "hidden")
            with pytest.raises(WeightsError, match=f"{name} is missing"):
                check_weights(settings)
            hidden.rename(folder / part / name)


@pytest.mark.parametrize("name", ["large.safetensors", "small.json"])
def test_check_hashes_finds_one_wrong_byte(
    name: str, settings_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hashes of a file that contains "abc": `git hash-object`, and `sha256sum`.
    known = {
        "small.json": "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f",
        "large.safetensors": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    manifest, file = tmp_path / "manifest.json", tmp_path / name
    manifest.write_text(json.dumps({"pointers": [{"file_name": str(file), "hash": known[name]}]}))
    monkeypatch.setattr(cold_start.weights, "MANIFEST", manifest)
    settings = settings_of("sd15", check_hashes=True)
    file.write_text("abc")
    check_weights(settings)
    file.write_text("abd")
    with pytest.raises(WeightsError, match=f"{name} is corrupt"):
        check_weights(settings)
    check_weights(settings.model_copy(update={"check_hashes": False}))


@pytest.mark.parametrize("preset", FAMILIES)
def test_requests_with_an_image_share_the_weights(preset: str, settings_of: Make) -> None:
    settings = settings_of(preset)
    plain = read_pipeline(settings, "cpu")
    before = tensors_of(plain)
    assert all(tensors_of(on_same_weights(plain, other)) == before for other in settings.others)
    assert tensors_of(plain) == before


def tensors_of(pipeline: Any) -> set[tuple[int, str]]:
    modules = [part for part in pipeline.components.values() if hasattr(part, "parameters")]
    return {(each.data_ptr(), str(each.dtype)) for module in modules for each in module.parameters()}

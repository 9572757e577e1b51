"""compile: regional makes the same images, and no request waits for a compiler."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers  # noqa: F401  # plainly, as where compile is set: tiny/make.py would import it without the compiler
import numpy
import pytest
import torch
from cold_start.pipeline import read_pipeline
from cold_start.warm_up import compile_blocks
from conftest import ALL, BLOCKS, FAMILIES, Make, Served, pixels_of
from model.pipelines import denoiser
from pipeline_settings import SettingsError
from safetensors.torch import save_file

COMPILER = os.environ.get("CXX", "g++")
needs_a_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"torch compiles for a CPU with {COMPILER}, which is missing"
)
# Not 64 x 64: sizes that are equal by chance, of a tiny image and of tiny heads, torch takes for one and the same.
REGIONAL = {"compile": "regional", "warm_up": True, "warm_up_sizes": [[96, 160]], "cpu_dtype": "float32"}
# The transformers of these name no blocks in diffusers 0.42.1.
WITHOUT_BLOCKS = {"StableDiffusion3Pipeline", "PixArtSigmaPipeline", "SanaSprintPipeline"}


@pytest.fixture
def inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile for real, into an empty cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.fixture(autouse=True)
def _as_in_a_new_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without inductor the blocks are traced and guarded as ever, but not written in C++, which takes a minute."""
    plain = torch.nn.Module.compile
    if "inductor" not in request.fixturenames:
        eager = lambda part, *how, **more: plain(part, *how, **{**more, "backend": "eager"})  # noqa: E731
        monkeypatch.setattr(torch.nn.Module, "compile", eager)
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def asked(served: Served, **body: Any) -> tuple[numpy.ndarray, int]:
    """Return the pixels, and how often compiled code ran."""
    # Not of this thread alone: the model has its own.
    threads = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, experimental_config=threads) as profile:
        image = served.image(**body)
    return pixels_of(image), sum(event.name.startswith("Torch-Compiled Region") for event in profile.events())


def make_strong_lora(folder: Path, pipeline: Any) -> None:
    """Write a LoRA of every attention's output, so much of it that a tiny model shows it."""
    tensors = {}
    for path, layer in pipeline.unet.named_modules():
        if path.endswith("to_out.0"):
            tensors[f"unet.{path}.lora_A.weight"] = torch.randn(2, layer.in_features)
            tensors[f"unet.{path}.lora_B.weight"] = torch.randn(layer.out_features, 2)
    folder.mkdir()
    save_file(tensors, folder / "style.safetensors")


@pytest.fixture
def with_lora(weights: Callable[[str], Path], settings_of: Make, tmp_path: Path) -> Make:
    """Return the settings of sd15 with such a LoRA, fused or for requests to choose."""
    for folder in weights("sd15").iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    make_strong_lora(tmp_path / "lora-style", read_pipeline(settings_of("sd15"), "cpu"))
    files = {**BLOCKS["sd15"]["weight_files"], "lora-style": ["*.safetensors"]}

    def settings(fused: bool, **changes: Any) -> Any:
        lora = {"name": "style", "scale": 1.0, "fused": fused}
        return settings_of("sd15", tmp_path, loras=[lora], weight_files=files, **changes)

    return settings


def blocks(served: Served) -> int:
    return sum(type(part).__name__.endswith("TransformerBlock") for part in denoiser(served.pipeline).modules())


def close(first: numpy.ndarray, second: numpy.ndarray) -> bool:
    return first.shape == second.shape and abs(first - second).max() <= 2


def graphs() -> int:
    """Return how often this test has compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.skipif(not ALL, reason="TEST_ALL is not set: to write the blocks in C++ takes 20 s")
@needs_a_compiler
def test_the_compiled_image_is_the_same(inductor: None, settings_of: Make, serve: Callable[..., Served]) -> None:
    check_sizes("sd15", [[128, 128]], settings_of, serve)


# Of squares alone sd15 would compile what fits no other size.
@pytest.mark.parametrize(("preset", "warmed"), [("sd15", [[128, 128]]), ("flux-schnell", [[96, 160]])])
def test_the_image_is_the_same_in_every_size_and_thread(
    preset: str, warmed: list[list[int]], settings_of: Make, serve: Callable[..., Served]
) -> None:
    check_sizes(preset, warmed, settings_of, serve)


def check_sizes(preset: str, warmed: list[list[int]], settings_of: Make, serve: Callable[..., Served]) -> None:
    sizes = [{"width": width, "height": height} for width, height in ((64, 64), (128, 64), (96, 160))]
    plain = serve(settings_of(preset, cpu_dtype="float32"))
    usual = [asked(plain, **size) for size in sizes]
    assert {runs for _, runs in usual} == {0}
    served = serve(settings_of(preset, **REGIONAL | {"warm_up_sizes": warmed}))
    compiled = graphs()
    assert compiled > 0
    with ThreadPoolExecutor(1) as other:
        for size, (expected, _) in zip(sizes, usual, strict=True):
            # load() runs in another thread than requests.
            found, runs = other.submit(asked, served, **size).result()
            assert close(found, expected)
            # 4 steps, each of them through every block.
            assert runs >= 4 * blocks(served) > 0
    assert graphs() == compiled


def test_what_the_warm_up_did_not_meet_is_not_compiled(settings_of: Make, serve: Callable[..., Served]) -> None:
    usual = pixels_of(serve(settings_of("sd15", cpu_dtype="float32")).image(guidance_scale=1.0))
    served = serve(settings_of("sd15", **REGIONAL))
    compiled = graphs()
    assert compiled > 0
    # Without guidance one text goes through the UNet, and not two.
    found, runs = asked(served, guidance_scale=1.0)
    assert close(found, usual)
    assert runs == 0
    assert graphs() == compiled
    # What it met still is.
    assert asked(served)[1] > 0


def test_a_fused_lora_is_compiled_with_the_weights(
    with_lora: Make, settings_of: Make, serve: Callable[..., Served]
) -> None:
    without = pixels_of(serve(settings_of("sd15", cpu_dtype="float32")).image())
    usual = pixels_of(serve(with_lora(fused=True, cpu_dtype="float32")).image())
    found, runs = asked(serve(with_lora(fused=True, **REGIONAL)))
    assert close(found, usual)
    assert runs > 0
    assert not close(without, usual)


def test_a_lora_beside_the_weights_works_and_is_not_compiled(with_lora: Make, serve: Callable[..., Served]) -> None:
    def images(served: Served) -> list[tuple[numpy.ndarray, int]]:
        return [asked(served), asked(served, loras=[{"name": "style"}]), asked(served)]

    usual = images(serve(with_lora(fused=False, cpu_dtype="float32")))
    served = serve(with_lora(fused=False, **REGIONAL))
    compiled = graphs()
    assert compiled > 0
    found = images(served)
    assert all(close(one, other) for (one, _), (other, _) in zip(usual, found, strict=True))
    assert not close(found[0][0], found[1][0])
    # The blocks that the LoRA changes run as they do without compiling.
    assert found[0][1] == found[2][1] > found[1][1]
    assert graphs() == compiled


@pytest.mark.parametrize("preset", FAMILIES)
def test_a_model_that_names_no_blocks_is_refused(preset: str, settings_of: Make) -> None:
    pipeline = read_pipeline(settings_of(preset), "cpu")
    if BLOCKS[preset]["class_name"] in WITHOUT_BLOCKS:
        with pytest.raises(SettingsError, match=r"compile: a \w+ lists no repeated blocks: use null"):
            compile_blocks(denoiser(pipeline))
        return
    # What is not used is not compiled.
    compile_blocks(denoiser(pipeline))


def test_a_warm_up_that_cannot_be_compiled_ends_in_a_sentence(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    import model.model

    def fail(*_: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")

    monkeypatch.setattr(model.model.Model, "_generate", fail)
    with pytest.raises(SettingsError, match=r"use null\. Failed to find C compiler\. Please specify via CC\.$"):
        serve(settings_of("sd15", **REGIONAL))


def test_each_size_that_config_yaml_names_is_warmed_up(
    settings_of: Make, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    import model.model

    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(model.model.Model, "_generate", lambda _, asked, *rest: sizes.append(size_of(asked)))
    serve(settings_of("sd15"))
    assert sizes == []
    serve(settings_of("sd15", warm_up=True))
    assert sizes == [(64, 64)]
    serve(settings_of("sd15", warm_up=True, warm_up_sizes=[[512, 768], [64, 64]]))
    assert sizes[1:] == [(512, 768), (64, 64)]


def size_of(asked: Any) -> tuple[int, int]:
    return asked.arguments["width"], asked.arguments["height"]

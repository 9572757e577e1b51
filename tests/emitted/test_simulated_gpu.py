"""Every family in the dtype of production on a simulated GPU, which refuses what CUDA does: see simulated_gpu.py.

With REAL_GPU in the environment, as `pytest -m gpu` sets it, on the GPU of this machine: then the words may differ.
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import simulated_gpu
import torch
from conftest import BLOCKS, FAMILIES, Make, Served, serve_with
from model.pipelines import denoiser
from safetensors.torch import save_file
from test_faults import STAGES, WHITE, fail_once, place
from test_lora import TAKE_LORA, choose, some_tensors

REAL = "REAL_GPU" in os.environ
# CUDA's errors for two devices and for two dtypes.
DEVICES, DTYPES = "on the same device", "the same dtype|should be the same"
PACKED = [
    preset for preset, block in BLOCKS.items() if any(".gguf" in str(part) for part in block["components"].values())
]


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> Iterator[None]:
    if REAL:
        assert torch.cuda.is_available()
    with contextlib.nullcontext() if REAL else simulated_gpu.device():
        yield


@pytest.fixture
def on_gpu(settings_of: Make, serve: Callable[..., Served]) -> Callable[..., Served]:
    """Serve a preset as config.yaml has it: on a GPU, nothing is of cpu_dtype."""
    return lambda preset: serve(settings_of(preset, cpu_dtype="float32"))


# sdxl-turbo decodes in float32.
@pytest.fixture(scope="module", params=[*FAMILIES, "sdxl-turbo"])
def family(
    request: pytest.FixtureRequest, settings_of: Make, weights: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One preset of each family, loaded once: where it takes LoRAs, with ink in its weights and oil to choose."""
    preset = request.param
    with pytest.MonkeyPatch.context() as patch:
        serve, settings = serve_with(patch), settings_of(preset, cpu_dtype="float32")
        served = serve(settings)
        if preset in TAKE_LORA:
            folder = tmp_path_factory.mktemp("loras")
            served = serve(
                settings_with_loras(served, weights(preset), folder, lambda **more: settings_of(preset, folder, **more))
            )
        yield served


def settings_with_loras(base: Served, weights: Path, folder: Path, settings: Callable[..., Any]) -> Any:
    """Write two LoRAs for the model beside its weights."""
    for each in weights.iterdir():
        (folder / each.name).symlink_to(each)
    files, entries = dict(base.settings.weight_files), []
    for seed, (name, fused) in enumerate((("ink", True), ("oil", False))):
        (folder / f"lora-{name}").mkdir()
        save_file(some_tensors(base.pipeline, seed), folder / f"lora-{name}" / "style.safetensors")
        files[f"lora-{name}"] = ["style.safetensors"]
        entries.append({"name": name, "scale": 1.0, "fused": fused})
    return settings(loras=entries, weight_files=files, cpu_dtype="float32")


def ask(served: Served, **body: Any) -> str:
    """Return the image of a request with few steps."""
    return served.image(**{"num_inference_steps": 2, **body})


def test_all_is_on_the_gpu_in_the_dtype_of_production(family: Served) -> None:
    dtype = getattr(torch, family.settings.dtype)
    for name, part in family.pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            tensors = [*part.parameters(), *part.buffers()]
            assert all(each.device == simulated_gpu.CUDA for each in tensors), name
            assert dtype in {each.dtype for each in part.parameters()}, name


def test_every_kind_of_request(family: Served) -> None:
    settings = family.settings
    text = ask(family)
    if settings.image_to_image:
        assert ask(family, image=text, strength=0.5) != text
    if settings.reference_images:
        assert ask(family, image=[text, text] if settings.reference_images.count > 1 else text) != text
    if settings.inpaint:
        assert ask(family, image=text, mask=WHITE)
    if settings.negative_prompt:
        assert ask(family, negative_prompt="blue", guidance_scale=3.0) != ask(family, guidance_scale=3.0)
    if settings.lora_names:
        assert ask(family, loras=choose(oil=1.5)) != text
    assert ask(family) == text


def memory_held() -> int:
    """Return the bytes on the device, without those that the collector has yet to free."""
    gc.collect()
    return torch.cuda.memory_allocated() if REAL else simulated_gpu.memory.now


# pytest takes back, after the fixture, what load() asks of warnings.
@pytest.mark.filterwarnings("error:.*out of memory:UserWarning")
def test_after_a_fault_in_each_stage_the_next_image_is_the_same(family: Served) -> None:
    text = ask(family)
    start = {"image": text, "strength": 0.5} if family.settings.image_to_image else None
    ask(family, **(start or {}))
    held = memory_held()
    for stage in STAGES if start else STAGES[:-1]:
        body = start if stage == STAGES[-1] else {}
        with pytest.MonkeyPatch.context() as patch:
            calls = fail_once(*place(family, stage), torch.OutOfMemoryError("CUDA out of memory."), patch)
            assert family.ask(num_inference_steps=2, **body).status_code == 503, stage
            assert calls, stage
        assert ask(family) == text, stage
        assert memory_held() <= held, stage
    assert family.healthy()


def test_requests_in_other_threads(on_gpu: Callable[..., Served]) -> None:
    served = on_gpu("sdxl")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: ask(served), range(2))
    assert first == second == ask(served)


@pytest.mark.parametrize("preset", PACKED)
def test_weights_in_8_bits(preset: str, on_gpu: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    if not REAL:
        simulated_gpu.take_gguf(monkeypatch.setattr)
    served = on_gpu(preset)
    packed = [each for each in served.pipeline.transformer.parameters() if hasattr(each, "quant_type")]
    assert packed
    assert all(each.device == simulated_gpu.CUDA for each in packed)
    assert ask(served) == ask(served)


def refused(served: Served, words: str, **body: Any) -> None:
    with pytest.raises(RuntimeError, match="" if REAL else words):
        ask(served, **body)


@pytest.mark.parametrize("preset", ["sd15", "flux-schnell"])
def test_a_mask_that_was_left_on_the_cpu_is_refused(
    preset: str, on_gpu: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = on_gpu(preset)
    body = {"image": ask(served), "mask": WHITE}
    ask(served, **body)
    pipeline = served.masked
    true = pipeline.prepare_mask_latents
    monkeypatch.setattr(pipeline, "prepare_mask_latents", lambda *a, **m: tuple(each.cpu() for each in true(*a, **m)))
    refused(served, DEVICES, **body)


@pytest.mark.parametrize("preset", ["sd15", "sd3-medium", "z-image-turbo"])
def test_latents_of_another_dtype_are_refused(
    preset: str, on_gpu: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = on_gpu(preset)
    model = denoiser(served.pipeline)
    true = model.forward

    def forward(*args: Any, **more: Any) -> Any:
        turn = lambda each: each.double() if isinstance(each, torch.Tensor) and each.dim() > 2 else each  # noqa: E731
        return true(*torch.utils._pytree.tree_map(turn, args), **torch.utils._pytree.tree_map(turn, more))

    monkeypatch.setattr(model, "forward", forward)
    refused(served, DTYPES)


@pytest.mark.parametrize("preset", ["sd15", "flux-schnell"])
def test_a_lora_that_leaves_float32_behind_is_refused(preset: str, on_gpu: Callable[..., Served]) -> None:
    served = on_gpu(preset)
    layer = next(part for path, part in denoiser(served.pipeline).named_modules() if path.endswith("to_q"))
    down, up = torch.randn(2, layer.in_features).cuda(), torch.randn(layer.out_features, 2).cuda()
    layer.weight = torch.nn.Parameter(layer.weight.float() + up @ down, requires_grad=False)
    refused(served, DTYPES)


@pytest.mark.parametrize(
    ("preset", "part", "layer", "name"),
    [("sd3-medium", "transformer", "pos_embed", "pos_embed"), ("sd15", "text_encoder", "embeddings", "position_ids")],
)
def test_a_buffer_that_was_not_moved_is_refused(
    preset: str, part: str, layer: str, name: str, on_gpu: Callable[..., Served]
) -> None:
    served = on_gpu(preset)
    buffers = served.pipeline.components[part].get_submodule(layer)._buffers
    buffers[name] = buffers[name].cpu()
    refused(served, DEVICES)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_a_parameter_that_was_not_moved_is_refused(part: str, on_gpu: Callable[..., Served]) -> None:
    served = on_gpu("sd15")
    *_, last = (each for each in served.pipeline.components[part].modules() if getattr(each, "bias", None) is not None)
    last.bias = torch.nn.Parameter(last.bias.cpu(), requires_grad=False)
    refused(served, DEVICES)


# The device itself.
REFUSED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "two devices": (DEVICES, lambda x: x + torch.ones(4, 4)),
    "two devices, the other way round": (DEVICES, lambda x: torch.ones(4, 4) + x),
    "a CPU tensor that is indexed by the GPU": (DEVICES, lambda x: torch.arange(4)[x.long()]),
    "an embedding of CPU tokens": (DEVICES, lambda x: torch.nn.functional.embedding(torch.arange(2), x)),
    "a product of two dtypes": (DTYPES, lambda x: x @ x.half()),
    "a linear layer of two dtypes": (DTYPES, lambda x: torch.nn.functional.linear(x.half(), x)),
    "a convolution of two dtypes": (DTYPES, lambda x: torch.nn.functional.conv2d(x[None, None], x[None, None].half())),
    "a norm of two dtypes": (DTYPES, lambda x: torch.nn.functional.layer_norm(x.half(), (4,), x[0], x[0])),
    "an attention of two dtypes": (
        DTYPES,
        lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None].half()),
    ),
    "an attention of two devices": (
        DEVICES,
        lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], torch.ones(1, 4, 4)),
    ),
    "a mask of attention in another dtype": (
        DTYPES,
        lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], x.double()),
    ),
    "a generator of the CPU": ("'cuda' device type for generator", lambda x: x.normal_(generator=torch.Generator())),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses_is_refused(what: str, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(simulated_gpu.limits, "numbers", 3)
    words, operation = REFUSED[what]
    with pytest.raises(RuntimeError, match="" if REAL else words):
        operation(torch.ones(4, 4, device="cuda"))


def test_what_cuda_takes_is_taken() -> None:
    x = torch.arange(4.0).cuda()
    assert (x * torch.tensor(2.0)).tolist() == [0, 2, 4, 6]
    assert x[torch.tensor([1])].tolist() == x[[1]].tolist() == [1]
    assert x[torch.tensor([False, True, False, False])].tolist() == [1]
    assert torch.tensor([1, 2], device="cuda").device == x.device == torch.device("cuda:0")
    assert (x.half() + x).dtype == torch.float32
    x[1:3] = 7
    assert x.cpu().tolist() == [0, 7, 7, 3]


@pytest.mark.skipif(REAL, reason="a real GPU holds its numbers")
def test_of_a_large_tensor_there_is_only_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_gpu.limits, "numbers", 10)
    before = memory_held()
    x = torch.ones(1000, 1000).cuda()
    assert memory_held() - before == 4_000_256  # whole blocks of 512 bytes
    assert (x @ x)[:, :10].shape == (1000, 10)
    assert memory_held() - before == 4_000_256
    for operation in (torch.Tensor.cpu, torch.Tensor.tolist, lambda x: x.sum().item(), lambda x: bool((x == 0).all())):
        with pytest.raises(RuntimeError, match="only its shape"):
            operation(x)
    small = torch.zeros(3, device="cuda")
    small += x.mean()
    with pytest.raises(RuntimeError, match="only its shape"):
        small.tolist()
    del x, small
    assert memory_held() == before

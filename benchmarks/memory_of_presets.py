"""Load presets at full size on a simulated GPU, and write the bytes that each stage of each kind of request needs.

    PROJECT_PYTHON benchmarks/memory_of_presets.py FOLDER PRESET...

Run by memory.py, which sets what tests/emitted/conftest.py reads. The real load() and predict() run; the weights are
sparse files of the real shapes and dtypes, so they take neither disk nor memory.
"""

import contextlib
import gc
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "emitted"))

import conftest  # noqa: E402  # isort: skip  # it says where model is
import full_size  # noqa: E402
import pytest  # noqa: E402
import simulated_gpu  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

# On the GPU of this machine: then torch's allocator is asked.
REAL = "REAL_GPU" in os.environ
# Of each LoRA that a request chooses. Those of the Hub have 4 to 128.
LORA_RANK = 64
Q8_BLOCK, Q8_BYTES = 32, 34


class RealMemory:
    """What simulated_gpu.memory is, of a GPU that is there. Setting the peak lets it begin anew."""

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated()

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    @peak.setter
    def peak(self, _: int) -> None:
        torch.cuda.reset_peak_memory_stats()


memory = RealMemory() if REAL else simulated_gpu.memory


def enlarge(folder: Path, preset: str, block: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """Give the tiny pipeline in folder its real size."""
    sizes = conftest.FACTS[preset].full_size
    for name, model in full_size.enlarge(folder, sizes, block["components"]).items():
        read_packed(model, sizes[name].get("unpacked"), patch)


def _packed(name: str, tensor: torch.Tensor, unpacked: str | None) -> tuple[torch.Tensor, Any]:
    """Return memory that nobody touches, of the size that a Q8_0 file has for the tensor, and its type there."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    if not name.endswith("weight") or tensor.ndim != 2 or tensor.shape[1] % Q8_BLOCK:
        return torch.zeros(tensor.shape, dtype=torch.float32), None
    rows, columns = tensor.shape
    if unpacked and re.search(unpacked, name):
        return torch.empty(rows, columns * 2, dtype=torch.uint8), kinds.BF16
    return torch.empty(rows, columns // Q8_BLOCK * Q8_BYTES, dtype=torch.uint8), kinds.Q8_0


def read_packed(model: torch.nn.Module, unpacked: str | None, patch: pytest.MonkeyPatch) -> None:
    """Let diffusers find these tensors in the GGUF file, in 8 bits where the real one has them."""
    from diffusers.models import model_loading_utils
    from diffusers.quantizers.gguf.utils import GGUFParameter

    def load(*_: Any, **__: Any) -> dict[str, torch.Tensor]:
        made = {name: _packed(name, tensor, unpacked) for name, tensor in model.state_dict().items()}
        return {name: GGUFParameter(each, quant_type=kind) if kind else each for name, (each, kind) in made.items()}

    patch.setattr(model_loading_utils, "load_gguf_checkpoint", load)
    if not REAL:
        simulated_gpu.take_gguf(patch.setattr)


class Stages:
    """The most bytes on the device in each stage of a request."""

    def __init__(self, pipeline: Any) -> None:
        self.peaks: dict[str, int] = {}
        self._denoiser = pipeline.components.get("unet") or pipeline.transformer

    def _end(self, stage: str) -> None:
        self.peaks[stage] = max(self.peaks.get(stage, 0), memory.peak)
        memory.peak = memory.now

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        gc.collect()
        memory.peak = memory.now
        before = lambda *_: self._end("step" if "text" in self.peaks else "text")  # noqa: E731
        hooks = [
            self._denoiser.register_forward_pre_hook(before),
            self._denoiser.register_forward_hook(lambda *_: self._end("step")),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self._end("decode")


@contextlib.contextmanager
def loras(pipeline: Any, count: int, dtype: torch.dtype) -> Iterator[None]:
    """Add this many LoRAs to the output of each linear layer of the UNet or transformer."""
    denoiser = pipeline.components.get("unet") or pipeline.transformer
    changed = []
    for layer in denoiser.modules():
        if not isinstance(layer, torch.nn.Linear) or hasattr(layer.weight, "quant_type"):
            continue
        pairs = [
            tuple(
                torch.zeros(shape, dtype=dtype, device="cuda")
                for shape in ((LORA_RANK, layer.in_features), (layer.out_features, LORA_RANK))
            )
            for _ in range(count)
        ]
        layer.forward = _with(layer.forward, pairs)
        changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _with(forward: Callable[..., Any], pairs: list[Any]) -> Callable[..., Any]:
    def added(value: Any, *rest: Any) -> Any:
        made = forward(value, *rest)
        for down, up in pairs:
            more = torch.nn.functional.linear(torch.nn.functional.linear(value.to(down.dtype), down), up)
            made = made + more * 1.0
        return made

    return added


def requests(settings: Any) -> dict[str, dict[str, Any]]:
    """Return the requests that are measured, by name: of each kind, at the default size and at the largest."""
    limits, defaults = settings.limits, settings.defaults
    image = conftest.text_of(Image.new("RGB", (limits.max_size, limits.max_size), "gray"))
    mask = conftest.text_of(Image.new("L", (limits.max_size, limits.max_size), 255))
    sizes = {"default": (defaults.width, defaults.height), "largest": (limits.max_size, limits.max_size)}
    kinds: dict[str, dict[str, Any]] = {"text": {}}
    if settings.image_to_image:
        kinds["image"] = {"image": image, "strength": 0.5}
    if settings.reference_images:
        count = settings.reference_images.count
        kinds["references"] = {"image": [image] * count if count > 1 else image}
    if settings.inpaint:
        kinds["mask"] = {"image": image, "mask": mask}
    return {
        f"{name}, {kind}": {"width": width, "height": height, **body}
        for name, (width, height) in sizes.items()
        for kind, body in kinds.items()
    }


def measure(preset: str) -> dict[str, Any]:
    # Fused, a LoRA leaves nothing behind.
    block, tiny, before = {**conftest.BLOCKS[preset], "loras": []}, conftest._tiny_pipeline(), memory.now
    block["weight_files"] = {
        name: files for name, files in block["weight_files"].items() if not name.startswith("lora-")
    }
    began = time.process_time()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        tiny.make(folder, block, conftest.TINY[preset])
        enlarge(folder, preset, block, patch)
        settings = conftest.Settings.model_validate({**block, "weights_dir": str(folder), "warm_up": False})
        memory.peak = memory.now
        served = conftest.serve_with(patch, small=False)(settings)
        result: dict[str, Any] = {
            "load": memory.peak - before,
            "weights": memory.now - before,
            "requests": {kind: _stages(served, body, before) for kind, body in requests(settings).items()},
        }
        # diffusers takes no LoRA for a GGUF.
        if not any(".gguf" in str(part) for part in block["components"].values()):
            with loras(served.pipeline, settings.limits.loras, getattr(torch, settings.dtype)):
                result["loras"] = memory.now - before - result["weights"]
                largest = {"width": settings.limits.max_size, "height": settings.limits.max_size}
                result["requests"]["largest, LoRAs"] = _stages(served, largest, before)
    return {**result, "seconds": round(time.process_time() - began, 1)}


def _stages(served: Any, body: dict[str, Any], before: int) -> dict[str, int]:
    settings = served.settings
    if settings.negative_prompt and settings.defaults.guidance_scale > 1:
        body = {"negative_prompt": "blurry", "guidance_scale": settings.defaults.guidance_scale, **body}
    stages = Stages(served.pipeline)
    prompt = ("a lighthouse on a cliff at dawn, " * 100)[: settings.limits.prompt_characters]
    with stages.watched():
        answer = served.ask(prompt=prompt, output_format="jpeg", num_inference_steps=2, **body)
    if not hasattr(answer, "images"):
        raise RuntimeError(f"{answer.status_code}: {answer.body!r}")
    return {stage: peak - before for stage, peak in stages.peaks.items()}


def main(folder: Path, presets: list[str]) -> None:
    simulated_gpu.limits.numbers, simulated_gpu.limits.made_up = 70_000, True
    with contextlib.nullcontext() if REAL else simulated_gpu.device():
        for preset in presets:
            try:
                found = measure(preset)
            except Exception as error:
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {error}"}
            (folder / f"{preset}.json").write_text(json.dumps(found, indent=1), "utf-8")
            print(preset, found.get("seconds", "failed"), flush=True)
            gc.collect()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

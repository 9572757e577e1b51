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
import struct
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
import diffusers  # noqa: E402
import pytest  # noqa: E402
import simulated_gpu  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

# On the GPU of this machine: then torch's allocator is asked.
REAL = "REAL_GPU" in os.environ
NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}
# Of each LoRA that a request chooses. Those of the Hub have 4 to 128.
LORA_RANK = 64
Q8_BLOCK, Q8_BYTES = 32, 34
# One file is mapped as a whole, and the kernel refuses more than the memory of a small machine.
SHARD_BYTES = 17 * 10**9


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
    index = json.loads((folder / "pipeline" / "model_index.json").read_text("utf-8"))
    for name, sizes in conftest.FACTS[preset].full_size.items():
        part = block["components"].get(name)
        home = folder / name if part else folder / "pipeline" / name
        config = home / "config.json"
        if part and part["file"]:
            config = folder / "pipeline" / name / "config.json"
        config.write_text(json.dumps(_merged(json.loads(config.read_text("utf-8")), _sizes(sizes))), "utf-8")
        model = _on_meta(index[name], config.parent, part)
        if part and str(part["file"]).endswith(".gguf"):
            read_packed(model, sizes.get("unpacked"), patch)
            continue
        _write_sparse(model, home)


def _sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    file = sizes.get("file")
    known = json.loads((HERE / "configs" / file).read_text("utf-8")) if file else {}
    return {**known, **{key: value for key, value in sizes.items() if key not in ("file", "unpacked")}}


def _merged(config: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    both = {**config}
    for key, value in sizes.items():
        both[key] = (
            _merged(config[key], value) if isinstance(value, dict) and isinstance(config.get(key), dict) else value
        )
    # Worked out anew, where the number of layers changed.
    return {key: value for key, value in both.items() if key != "layer_types" or value is not None}


def _on_meta(entry: list[str], folder: Path, part: dict[str, Any] | None) -> torch.nn.Module:
    library = transformers if entry[0] == "transformers" else diffusers
    class_ = getattr(library, part["class_name"] if part else entry[1])
    with torch.device("meta"):
        if library is diffusers:
            return class_.from_config(class_.load_config(folder))
        return class_(class_.config_class.from_pretrained(folder))


def _write_sparse(model: torch.nn.Module, folder: Path) -> None:
    """Write the model's tensors as zeros that take no disk, under the names and in the dtype of its tiny files."""
    files = sorted(folder.rglob("*.safetensors"))
    tiny = json.loads(files[0].read_bytes()[8 : 8 + struct.unpack("<Q", files[0].read_bytes()[:8])[0]])
    dtype = next(each["dtype"] for name, each in tiny.items() if name != "__metadata__" and each["dtype"] != "I64")
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ())
        if getattr(model.config, "tie_word_embeddings", False)
        else set()
    )
    shards: list[tuple[dict[str, Any], int]] = []
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        kind = dtype if tensor.is_floating_point() else NAMES[tensor.dtype]
        size = tensor.numel() * {"F16": 2, "BF16": 2, "F32": 4, "I64": 8}[kind]
        if not shards or shards[-1][1] + size > SHARD_BYTES:
            shards.append(({"__metadata__": {"format": "pt"}}, 0))
        header, at = shards[-1]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        shards[-1] = header, at + size
    stem = files[0].name.split("-0")[0].removesuffix(".safetensors")
    names = [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [files[0].name]
    else:
        files[0].unlink()
    for (header, at), name in zip(shards, names, strict=True):
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (files[0].parent / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
    total = sum(at for _, at in shards)
    indexes = list(folder.glob("*.index*.json")) or [folder / f"{stem}.safetensors.index.json"]
    if len(shards) > 1 or indexes[0].is_file():
        where = {tensor: name for (header, _), name in zip(shards, names, strict=True) for tensor in header}
        del where["__metadata__"]
        indexes[0].write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}), "utf-8")


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
        served = conftest.serve_with(patch)(settings)
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

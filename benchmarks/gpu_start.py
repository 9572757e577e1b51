"""One start in a process of its own, as gpu.py times it: imports, CUDA context, and a pipeline on the device.

    python benchmarks/gpu_start.py WAY PIPELINE_FOLDER DEVICE

Prints the seconds since the process began. WAY is one of WAYS.
"""

import ctypes
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

WAYS = ("one_after_the_other", "context_in_a_thread", "parallel_loading", "weights_while_importing")
CUDA_DRIVER = "libcuda.so.1"


def make_context() -> None:
    """Make the context that torch is going to use. https://docs.nvidia.com/cuda/cuda-driver-api

    The calls go without the interpreter's lock, so the imports run on.
    """
    driver = ctypes.CDLL(CUDA_DRIVER)
    context = ctypes.c_void_p()
    for error in (driver.cuInit(0), driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)):
        if error:
            raise RuntimeError(f"The CUDA driver answered {error}.")


def read_all(folder: Path, device: str, read: dict[str, Any]) -> None:
    """Bring the weights of each component onto device, while the main thread imports."""
    from safetensors.torch import load_file

    for file in sorted(folder.glob("*/*.safetensors")):
        read.setdefault(file.parent.name, {}).update(load_file(file, device=device))


def build(folder: Path, device: str, read: dict[str, Any]) -> Any:
    """Return the pipeline of folder, made of tensors that are on device already."""
    import diffusers
    import torch
    import transformers
    from accelerate import init_empty_weights

    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    models = {}
    for name, tensors in read.items():
        config = json.loads((folder / name / "config.json").read_text("utf-8"))
        with init_empty_weights(include_buffers=False):
            if index[name][0] == "transformers":
                class_ = getattr(transformers, index[name][1])
                model = class_(class_.config_class.from_dict(config))
            else:
                model = getattr(diffusers, index[name][1]).from_config(config)
        model.load_state_dict(tensors, assign=True)
        models[name] = model.to(device, torch.float16).eval()
    pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(folder, local_files_only=True, **models)
    assert not any(parameter.device.type == "meta" for model in models.values() for parameter in model.parameters())
    assert all(model.dtype == torch.float16 for model in models.values())
    return pipeline


def start(way: str, folder: Path, device: str) -> None:
    if way == "context_in_a_thread":
        thread = threading.Thread(target=make_context)
        thread.start()
    if way == "parallel_loading":
        os.environ["HF_ENABLE_PARALLEL_LOADING"] = "1"
    import torch

    read: dict[str, Any] = {}
    if way == "weights_while_importing":
        reading = threading.Thread(target=read_all, args=(folder, device, read))
        reading.start()
    import diffusers

    class_ = getattr(diffusers, json.loads((folder / "model_index.json").read_text("utf-8"))["_class_name"])
    if way == "weights_while_importing":
        reading.join()
        pipeline = build(folder, device, read)
    else:
        pipeline = class_.from_pretrained(
            folder, dtype=torch.float16, variant="fp16", use_safetensors=True, local_files_only=True, device_map=device
        )
    if device != "cpu":
        torch.cuda.synchronize()
    assert pipeline.unet.device.type == device


if __name__ == "__main__":
    # Of Python's own start, too: psutil would be one more import.
    ticks = int(Path("/proc/self/stat").read_text("utf-8").rsplit(")", 1)[1].split()[19])
    start(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    print(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))

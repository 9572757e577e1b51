"""Fuses a LoRA into the weights, or says why it cannot."""

from pathlib import Path
from typing import Any

from model.weights import WeightsError

# What the names of tensors hold in formats that diffusers applies in part, or not to every family.
OTHER_FORMATS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr"}
OTHER_FORMATS |= {"lora_mid": "LoCon with a middle layer", "base_model.model.": "PEFT"}
UPS = (".lora_B.weight", ".lora_up.weight", ".up.weight")


def fuse(pipeline: Any, folder: Path, scale: float) -> None:
    """Add the one LoRA in folder to the weights, times scale. Raises WeightsError unless all of it has an effect."""
    from safetensors import safe_open

    if not hasattr(pipeline, "load_lora_weights"):
        raise WeightsError(f"lora_repo_id is set, and a {type(pipeline).__name__} cannot take a LoRA: leave it empty.")
    files = list(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise WeightsError(f"lora_repo_id is set, and {folder} holds {len(files)} safetensors files: cache one.")
    file = files[0].name
    with safe_open(files[0], "pt") as tensors:
        names = list(tensors.keys())
    for part, form in OTHER_FORMATS.items():
        if any(part in name for name in names):
            raise WeightsError(f"The LoRA {file} is in the format {form}: use one in the format of diffusers or kohya.")
    unfit = f"The LoRA {file} does not fit a {type(pipeline).__name__}: use one that was made for this model."
    try:
        pipeline.load_lora_weights(folder, weight_name=file, local_files_only=True)
        layers = {
            name: [layer for layer in part.modules() if hasattr(layer, "get_delta_weight") and layer.active_adapters]
            for name, part in pipeline.components.items()
            if hasattr(part, "modules")
        }
        added = [layer for found in layers.values() for layer in found]
        # diffusers takes no notice of names that it does not know.
        whole = len(added) >= sum(name.endswith(UPS) for name in names)
        if not whole or not any(layer.get_delta_weight(layer.active_adapters[0]).any() for layer in added):
            raise ValueError("Some of it has no effect.")
        # Named, as some pipelines would leave out their text encoder.
        pipeline.fuse_lora(components=[name for name, found in layers.items() if found], lora_scale=scale)
    except (ValueError, RuntimeError, LookupError, AttributeError) as error:
        raise WeightsError(unfit) from error
    # The weights hold it now: what is left of it would only cost memory.
    pipeline.unload_lora_weights()

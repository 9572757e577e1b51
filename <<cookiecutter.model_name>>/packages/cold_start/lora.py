"""Adds LoRAs: fused into the weights, or beside them for a request to choose. Says why one cannot be added."""

from pathlib import Path
from typing import Any

from cold_start.weights import WeightsError
from pipeline_settings import Lora, one_line

# What the names of tensors hold in formats that diffusers applies in part, or not to every family.
OTHER_FORMATS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr"}
OTHER_FORMATS |= {"lora_mid": "LoCon with a middle layer", "base_model.model.": "PEFT"}


def add(pipeline: Any, folder: Path, loras: list[Lora]) -> None:
    """Fuse some of loras, and lay the others beside the weights, for choose_loras(). folder: holds the folder of each.

    Raises WeightsError unless every tensor of each can have an effect.
    """
    # Fused first: that ends with taking away all that lies beside the weights.
    for lora in sorted(loras, key=lambda lora: not lora.fused):
        _add(pipeline, folder / lora.folder, lora)


def _add(pipeline: Any, folder: Path, lora: Lora) -> None:
    from safetensors.torch import load_file

    if not hasattr(pipeline, "load_lora_weights"):
        raise WeightsError(f"config.yaml, loras: a {type(pipeline).__name__} cannot take a LoRA, so use [].")
    files = list(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise WeightsError(f"The LoRA {lora.name} is one file, and {folder} holds {len(files)}: cache one safetensors.")
    try:
        tensors = load_file(files[0])
        for part, form in OTHER_FORMATS.items():
            if any(part in name for name in tensors):
                raise ValueError(f"it is in the format {form}")
        count, size = _converted(pipeline, tensors), sum(tensor.numel() for tensor in _tensors(pipeline).values())
        pipeline.load_lora_weights(folder, weight_name=files[0].name, adapter_name=lora.folder, local_files_only=True)
        found = _tensors(pipeline)
        added = {path: tensor for path, tensor in found.items() if f".{lora.folder}." in path}
        # diffusers takes no notice of a tensor whose layer is not there, and makes a layer larger if a LoRA is.
        size += sum(tensor.numel() for tensor in added.values())
        if len(added) != count or sum(tensor.numel() for tensor in found.values()) != size:
            raise ValueError(f"of its {count} tensors {len(added)} fit")
        if not all(any(tensor.any() for path, tensor in added.items() if f".lora_{end}." in path) for end in "AB"):
            raise ValueError("it changes nothing")
        if lora.fused:
            # Named, as some pipelines would leave out their text encoder.
            pipeline.fuse_lora(components=sorted({path.split(".")[0] for path in added}), lora_scale=lora.scale)
    # For a file that it does not know diffusers raises whatever its converters run into.
    except Exception as error:
        raise WeightsError(
            f"The LoRA {lora.name} ({files[0].name}) does not fit a {type(pipeline).__name__}: "
            f"{one_line(error, 300)}. Use one that was made for this model, in the format of diffusers or kohya."
        ) from error
    if lora.fused:
        # The weights hold it now: what is left of it would only cost memory.
        pipeline.unload_lora_weights()


def _tensors(pipeline: Any) -> dict[str, Any]:
    parts = {name: part for name, part in pipeline.components.items() if hasattr(part, "named_parameters")}
    return {f"{name}.{path}": tensor for name, part in parts.items() for path, tensor in part.named_parameters()}


def _converted(pipeline: Any, tensors: dict[str, Any]) -> int:
    """Return how many tensors diffusers makes of those in a file. Raises ValueError if it drops one, which it may."""
    from torch.autograd.graph import get_gradient_edge

    # What training needs tells here what became of each: a tensor remembers of which others it was made.
    copies = {name: each if "alpha" in name else each.requires_grad_().clone() for name, each in tensors.items()}
    origins = {get_gradient_edge(copy).node: name for name, copy in copies.items() if copy.requires_grad}
    options = {"unet_config": pipeline.unet.config} if hasattr(pipeline, "unet") else {}
    made = pipeline.lora_state_dict(copies, **options)
    made = made[0] if isinstance(made, tuple) else made
    waiting, reached = [get_gradient_edge(tensor).node for tensor in made.values()], set[Any]()
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += [before for before, _ in node.next_functions if before]
    for dropped in origins.keys() - reached:
        raise ValueError(f"its {origins[dropped]} has no effect")
    return len(made)

"""What a LoRA file adds to a pipeline: proved by its header, read when it is used, or fused into the weights."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cold_start.weights import WeightsError
from pipeline_settings import Lora, one_line

# What tensors are called in formats that are more than two factors. diffusers would apply some of them in part.
OTHER_FORMATS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr"}
OTHER_FORMATS |= {"lora_mid": "LoCon with a middle layer"}
# A layer, down [rank, in, ...], up [out, rank, ...], a bias or None, and alpha / rank.
Pair = tuple[Any, Any, Any, Any, float]


def prove(pipeline: Any, folder: Path, lora: Lora) -> Callable[[], list[Pair]]:
    """Return what reads a LoRA of which every tensor has an effect. Raises WeightsError for any other.

    folder: holds the folder of each. What is read is on the device of its layer, and in its dtype.
    """
    from safetensors import SafetensorError, safe_open

    if not hasattr(pipeline, "lora_state_dict"):
        raise WeightsError(f"config.yaml, loras: a {type(pipeline).__name__} cannot take a LoRA, so use [].")
    folder /= lora.folder
    files = list(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise WeightsError(f"The LoRA {lora.name} is one file, and {folder} holds {len(files)}: cache just one.")
    try:
        with safe_open(files[0], "pt") as opened:
            found = _prove(pipeline, opened)
    except Exception as error:
        broken = isinstance(error, SafetensorError | OSError)
        why = "it is not a whole safetensors file" if broken else one_line(error, 300)
        raise WeightsError(
            f"The LoRA {lora.name} ({files[0].name}) does not fit a {type(pipeline).__name__}: {why}. "
            "Use one that was made for this model, in the format of diffusers or kohya."
        ) from error

    def read() -> list[Pair]:
        with safe_open(files[0], "pt") as opened:
            made = _made(pipeline, {name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
        pairs = []
        for path, (layer, factor) in found.items():
            own = {end: tensor.to(layer.weight) for end, tensor in made[path].items()}
            pairs.append((layer, own["A.weight"], own["B.weight"], own.get("B.bias"), factor))
        return pairs

    return read


def fuse(pipeline: Any, folder: Path, lora: Lora) -> None:
    """Add a LoRA to the weights, W + scale * alpha / rank * up @ down, rounded once. Raises WeightsError."""
    for layer, down, up, bias, factor in prove(pipeline, folder, lora)():
        weight, added = layer.weight.data, up.float().flatten(1) @ down.float().flatten(1)
        weight.copy_(weight.float() + lora.scale * factor * added.view_as(weight))
        if bias is not None:
            layer.bias.data += lora.scale * factor * bias


def _prove(pipeline: Any, opened: Any) -> dict[str, tuple[Any, float]]:
    """Return each layer that the file changes and alpha / rank of it, by its path. Raises ValueError."""
    import torch

    slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    stems = {name: re.split(r"[._]lora[._]", name.removesuffix(".alpha"))[0] for name in slices}
    factors = Counter(stem for name, stem in stems.items() if not name.endswith((".alpha", ".bias")))
    for name, each in slices.items():
        for form in (form for part, form in OTHER_FORMATS.items() if part in name):
            raise ValueError(f"it is in the format {form}")
        if each.get_dtype() not in ("F16", "BF16", "F32"):
            raise ValueError(f"its {name} is of {each.get_dtype()}, and not of F16, BF16 or F32")
        if factors[stems[name]] == 1 and not name.endswith(".alpha"):
            raise ValueError(f"its {name} lacks the second factor")
    # Placeholders without memory. grad_fn, which training needs, tells which of them each converted tensor came from.
    one = torch.ones((), requires_grad=True)
    tensors = {name: one.expand(each.get_shape()) for name, each in slices.items()}
    names = {tensor.grad_fn: name for name, tensor in tensors.items()}
    try:
        made = _made(pipeline, tensors)
    except Exception as error:  # whatever the converters run into
        raise ValueError(f"diffusers cannot read such tensors as its {min(tensors)}") from error
    parts = {name: part for name, part in pipeline.components.items() if hasattr(part, "named_modules")}
    layers = {f"{name}.{path}": layer for name, part in parts.items() for path, layer in part.named_modules()}
    noted = _noted((opened.metadata() or {}).get("lora_adapter_metadata") or "{}")
    found, used = {}, dict[str, str]()
    for path, pair in made.items():
        sources = {end: _sources(tensor.grad_fn, names) for end, tensor in pair.items()}
        name = min(set().union(*sources.values()), default=path)
        # transformers 5 made CLIP's text model flat, and files have the names of before.
        layer: Any = layers.get(path) or layers.get(path.replace(".text_model.", ".", 1))
        usual = isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and getattr(layer, "groups", 1) == 1
        if not usual or not {"A.weight", "B.weight"} <= pair.keys():
            raise ValueError(f"its {name} is for no layer of this model")
        (rows, *columns), rank = layer.weight.shape, math.prod(pair["B.weight"].shape[1:2])
        takes = {"A.weight": [rank, *columns], "B.weight": [rows, rank, *[1] * (len(columns) - 1)]}
        takes["B.bias"] = [] if layer.bias is None else [rows]
        for end, tensor in pair.items():
            if [*tensor.shape] != takes.get(end) or not rank:
                name = min(sources[end], default=path)
                raise ValueError(f"its {name} is of {[*tensor.shape]}, and the layer takes {takes.get(end)}")
            used |= dict.fromkeys(sources[end], end)
        ratios = set()
        for source in sources["A.weight"]:
            alpha = f"{stems[source]}.alpha"
            if alpha in tensors and tensors[alpha].numel() == 1:
                used[alpha] = "alpha"
                ratios.add(opened.get_tensor(alpha).item() / tensors[source].shape[0])
            else:
                ratios.add(noted(path, rank))
        if len(ratios) != 1 or not all(ratio and math.isfinite(ratio) for ratio in ratios):
            raise ValueError(f"the alpha of its {name} is not one finite number other than 0")
        found[path] = layer, ratios.pop()
    for name in sorted(tensors.keys() - used.keys()):
        raise ValueError(f"its {name} has no effect")
    for kind in ("A.weight", "B.weight"):
        # As a rule the first of them has other numbers.
        if not any(end == kind and opened.get_tensor(name).any() for name, end in used.items()):
            raise ValueError("it changes nothing")
    return found


def _sources(node: Any, names: dict[Any, str]) -> set[str]:
    """Return the names of the tensors that one was made of."""
    if node in names:
        return {names[node]}
    return set().union(*(_sources(before, names) for before, _ in getattr(node, "next_functions", ())))


def _noted(notes: str) -> Callable[[str, int], float]:
    """Return what tells alpha / rank as diffusers notes it in a file that it saves, in the terms of peft, or else 1."""
    try:
        noted = {name.rpartition(".")[::2]: value for name, value in json.loads(notes).items()}
        of_part = {part: float(value) for (part, key), value in noted.items() if key == "lora_alpha"}
        patterns = [
            (re.compile(rf"{re.escape(part)}\.(.*\.)?({pattern})$"), float(alpha))
            for (part, key), value in noted.items()
            for pattern, alpha in (value.items() if key == "alpha_pattern" else ())
        ]
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise ValueError("its lora_adapter_metadata cannot be read") from error

    def ratio(path: str, rank: int) -> float:
        part = path.split(".")[0]
        alpha = next((alpha for pattern, alpha in patterns if pattern.match(path)), of_part.get(part, rank))
        return alpha / (math.sqrt(rank) if noted.get((part, "use_rslora")) else rank)

    return ratio


def _made(pipeline: Any, tensors: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return them as peft names them, by component.path and the end (A.weight), as if each alpha were the rank."""
    import torch
    from diffusers import utils

    # diffusers gives some layers another's alpha. One format of FLUX must have them.
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}
    for name in [name for name in plain if name.startswith("lora_transformer_") and ".lora_down." in name]:
        plain[f"{name.split('.')[0]}.alpha"] = torch.tensor(float(plain[name].shape[0]))
    options = {"unet_config": pipeline.unet.config} if hasattr(pipeline, "unet") else {}
    made = pipeline.lora_state_dict(plain, **options)
    made, found = made[0] if isinstance(made, tuple) else made, dict[str, dict[str, Any]]()
    for part in {name.split(".")[0] for name in made}:
        own = {name: tensor for name, tensor in made.items() if name.startswith(f"{part}.")}
        if part.startswith("text_encoder"):
            own = utils.convert_state_dict_to_peft(utils.convert_state_dict_to_diffusers(own))
        elif not any(".lora_A." in name for name in own):
            own = utils.convert_unet_state_dict_to_peft(own)
        for name, tensor in own.items():
            path, _, end = name.rpartition(".lora_")
            found.setdefault(path, {})[end] = tensor
    return found

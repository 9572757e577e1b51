"""A LoRA is fused at the strength that its file says, or one sentence says why not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BLOCKS, FAMILIES, Make
from model.pipeline import read_pipeline
from model.weights import WeightsError
from safetensors.torch import save_file

RANK, ALPHA, SCALE = 4, 2.0, 0.5
TAKE_LORA = [preset for preset in FAMILIES if BLOCKS[preset]["class_name"] != "PixArtSigmaPipeline"]


@pytest.fixture(scope="module")
def plain(settings_of: Make) -> Callable[[str], Any]:
    """Return the pipeline of a preset without a LoRA, in float32, so that small differences count."""
    read: dict[str, Any] = {}

    def pipeline(preset: str) -> Any:
        if preset not in read:
            read[preset] = read_pipeline(settings_of(preset, cpu_dtype="float32"), "cpu")
        return read[preset]

    return pipeline


@pytest.fixture
def fuse(settings_of: Make, weights: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
    """Return the pipeline with a LoRA of these tensors."""

    def fused(preset: str, tensors: dict[str, torch.Tensor]) -> Any:
        for folder in weights(preset).iterdir():
            (tmp_path / folder.name).symlink_to(folder)
        (tmp_path / "lora").mkdir()
        save_file(tensors, tmp_path / "lora" / "style.safetensors")
        files = {**BLOCKS[preset]["weight_files"], "lora": ["style.safetensors"]}
        more = {"lora_repo_id": "owner/style", "lora_scale": SCALE, "weight_files": files, "cpu_dtype": "float32"}
        return read_pipeline(settings_of(preset, tmp_path, **more), "cpu")

    return fused


def in_files(path: str) -> str:
    """Return how LoRA files name a layer of CLIP, whose text model is flat since transformers 5."""
    return path if path.startswith("text_model.") else f"text_model.{path}"


def layers(component: Any, ending: str | tuple[str, ...]) -> dict[str, Any]:
    return {path: layer for path, layer in component.named_modules() if path.endswith(ending)}


def pair(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two factors of what is added to the weight of the layer."""
    generator = torch.Generator().manual_seed(layer.in_features + layer.out_features)
    down = torch.randn(RANK, layer.in_features, generator=generator)
    return down, torch.randn(layer.out_features, RANK, generator=generator)


def denoiser(pipeline: Any) -> str:
    return "unet" if "unet" in pipeline.components else "transformer"


def check(before: Any, after: Any, added: dict[tuple[str, str], torch.Tensor]) -> None:
    """Require that these layers, and no others, have changed: by what is added, times the scale."""
    for name, part in before.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        fused = dict(after.components[name].named_parameters())
        assert fused.keys() == dict(part.named_parameters()).keys(), name
        for path, parameter in part.named_parameters():
            more = added.get((name, path.removesuffix(".weight")), torch.zeros(()))
            torch.testing.assert_close(fused[path].float(), parameter.float() + SCALE * more, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("preset", TAKE_LORA)
def test_names_of_diffusers(preset: str, plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    pipeline = plain(preset)
    name = denoiser(pipeline)
    tensors, added = {}, {}
    for path, layer in layers(pipeline.components[name], "to_q").items():
        down, up = pair(layer)
        tensors |= {f"{name}.{path}.lora_A.weight": down, f"{name}.{path}.lora_B.weight": up}
        added[name, path] = up @ down
    check(pipeline, fuse(preset, tensors), added)


@pytest.mark.parametrize("preset", ["sd15", "sdxl", "flux-schnell", "sd3-medium"])
def test_the_text_encoder_too(preset: str, plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    pipeline = plain(preset)
    path, layer = next(iter(layers(pipeline.text_encoder, "self_attn.q_proj").items()))
    down, up = pair(layer)
    stem = f"text_encoder.{in_files(path)}"
    tensors = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    check(pipeline, fuse(preset, tensors), {("text_encoder", path): up @ down})


@pytest.mark.parametrize(("preset", "encoder"), [("sd15", "te"), ("sdxl", "te1"), ("lcm-dreamshaper", "te")])
def test_names_of_kohya_and_their_alpha(
    preset: str, encoder: str, plain: Callable[[str], Any], fuse: Callable[..., Any]
) -> None:
    pipeline = plain(preset)
    tensors, added = {}, {}
    for name, prefix, endings in (
        ("unet", "lora_unet_", ("to_q",)),
        ("text_encoder", f"lora_{encoder}_", ("q_proj", "out_proj")),
    ):
        for path, layer in layers(pipeline.components[name], endings).items():
            down, up = pair(layer)
            stem = prefix + (in_files(path) if name == "text_encoder" else path).replace(".", "_")
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
            added[name, path] = up @ down * ALPHA / RANK
    check(pipeline, fuse(preset, tensors), added)


def unet_tensors(pipeline: Any, kind: str) -> dict[str, torch.Tensor]:
    path, layer = next(iter(layers(pipeline.unet, "to_q").items()))
    down, up = pair(layer)
    stem = "lora_unet_" + path.replace(".", "_")
    kohya = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(ALPHA)}
    return {
        "PEFT": {f"base_model.model.{path}.lora_A.weight": down, f"base_model.model.{path}.lora_B.weight": up},
        "DoRA": {**kohya, f"{stem}.dora_scale": torch.ones(layer.out_features, 1)},
        "LoHa": {
            f"{stem}.hada_w1_a": up,
            f"{stem}.hada_w1_b": down,
            f"{stem}.hada_w2_a": up.clone(),
            f"{stem}.hada_w2_b": down.clone(),
        },
        "LoKr": {f"{stem}.lokr_w1": torch.ones(2, 2), f"{stem}.lokr_w2": torch.ones(2, 2)},
        "LoCon": {**kohya, f"{stem}.lora_mid.weight": torch.ones(RANK, RANK, 1, 1)},
    }[kind]


@pytest.mark.parametrize("kind", ["PEFT", "DoRA", "LoHa", "LoKr", "LoCon"])
@pytest.mark.parametrize("preset", ["sd15", "sdxl"])
def test_another_format_is_named(preset: str, kind: str, plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    with pytest.raises(WeightsError, match=f"is in the format {kind}"):
        fuse(preset, unet_tensors(plain(preset), kind))


def test_a_lora_of_another_family_is_refused(plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    path, layer = next(iter(layers(plain("flux-schnell").transformer, "to_q").items()))
    down, up = pair(layer)
    stem = f"transformer.{path}"
    with pytest.raises(WeightsError, match=r"does not fit a StableDiffusionPipeline"):
        fuse("sd15", {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up})


def test_a_lora_of_another_size_is_refused(plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    path, layer = next(iter(layers(plain("sd15").unet, "to_q").items()))
    tensors = {
        f"unet.{path}.lora_A.weight": torch.ones(RANK, layer.in_features + 8),
        f"unet.{path}.lora_B.weight": torch.ones(layer.out_features, RANK),
    }
    with pytest.raises(WeightsError, match=r"does not fit"):
        fuse("sd15", tensors)


def test_a_lora_of_which_only_a_part_fits_is_refused(plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    path, layer = next(iter(layers(plain("sd15").unet, "to_q").items()))
    down, up = pair(layer)
    tensors = {
        f"unet.{stem}.lora_{letter}.weight": tensor.clone()
        for stem in (path, "no.such.layer")
        for letter, tensor in (("A", down), ("B", up))
    }
    with pytest.raises(WeightsError, match=r"does not fit"):
        fuse("sd15", tensors)


def test_a_lora_of_zeros_is_refused(plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    path, layer = next(iter(layers(plain("sd15").unet, "to_q").items()))
    down, up = pair(layer)
    tensors = {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": torch.zeros_like(up)}
    with pytest.raises(WeightsError, match=r"does not fit"):
        fuse("sd15", tensors)


def test_a_lora_with_a_bias_that_the_layer_has_not_is_refused(
    plain: Callable[[str], Any], fuse: Callable[..., Any]
) -> None:
    path, layer = next(iter(layers(plain("sd15").unet, "to_q").items()))
    down, up = pair(layer)
    stem = f"unet.{path}.lora"
    tensors = {f"{stem}_A.weight": down, f"{stem}_B.weight": up, f"{stem}_B.bias": torch.ones(layer.out_features)}
    with pytest.raises(WeightsError, match=r"does not fit"):
        fuse("sd15", tensors)


def test_a_family_that_cannot_take_one_says_so(fuse: Callable[..., Any]) -> None:
    with pytest.raises(WeightsError, match="a PixArtSigmaPipeline cannot take a LoRA"):
        fuse("pixart-sigma", {"unet.x.lora_A.weight": torch.ones(1, 1)})

"""A LoRA has the effect that its file says, fused or chosen by a request, or one sentence says why not."""

import contextlib
import gc
import json
import random
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cold_start.pipeline import read_pipeline
from cold_start.weights import WeightsError
from conftest import BLOCKS, FACTS, FAMILIES, Make, Served, pixels_of
from lora_files import prove
from model import pipelines
from model.pipelines import Loras
from model.request import request_model
from pipeline_settings import Settings
from pydantic import ValidationError
from safetensors.torch import save_file
from test_faults import WHITE
from torch.nn import functional

RANK, ALPHA, SCALE = 4, 2.0, 0.5
Tensors = dict[str, torch.Tensor]
TAKE_LORA = [preset for preset in FAMILIES if FACTS[preset].takes_lora]
ENCODERS = {"sd15": "te", "sdxl": "te1", "lcm-dreamshaper": "te"}


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
def loras_of(settings_of: Make, weights: Callable[[str], Path], tmp_path: Path) -> Callable[..., Settings]:
    """Return the settings of a preset with LoRAs of these tensors, by name. scales: of those that are fused."""

    def settings(
        preset: str,
        files: dict[str, Tensors],
        scales: dict[str, float],
        dtype: str = "float32",
        notes: dict[str, str] | None = None,
        **limits: int,
    ) -> Settings:
        for folder in weights(preset).iterdir():
            if not (tmp_path / folder.name).exists():
                (tmp_path / folder.name).symlink_to(folder)
        cached, entries = dict(BLOCKS[preset]["weight_files"]), []
        for name, tensors in files.items():
            (tmp_path / f"lora-{name}").mkdir(exist_ok=True)
            save_file(tensors, tmp_path / f"lora-{name}" / "style.safetensors", {**(notes or {})})
            cached[f"lora-{name}"] = ["style.safetensors"]
            entries.append({"name": name, "scale": scales.get(name, 1.0), "fused": name in scales})
        limits = {**BLOCKS[preset]["limits"], **limits}
        return settings_of(preset, tmp_path, loras=entries, weight_files=cached, cpu_dtype=dtype, limits=limits)

    return settings


@pytest.fixture(params=["fused", "chosen"])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fuse(loras_of: Callable[..., Settings]) -> Callable[..., Any]:
    """Return a block in which the pipeline has a LoRA of these tensors, at SCALE: in its weights, or chosen."""

    @contextlib.contextmanager
    def fused(preset: str, tensors: Tensors, way: str = "fused", **notes: str) -> Iterator[Any]:
        settings = loras_of(preset, {"style": tensors}, {"style": SCALE} if way == "fused" else {}, notes=notes)
        pipeline = read_pipeline(settings, "cpu")
        with Loras(pipeline, settings).chosen({} if way == "fused" else {"style": SCALE}):
            yield pipeline

    return fused


def in_files(path: str) -> str:
    """Return how LoRA files name a layer of CLIP, whose text model is flat since transformers 5."""
    return path if path.startswith("text_model.") else f"text_model.{path}"


def layers(component: Any, ending: str | tuple[str, ...]) -> dict[str, Any]:
    return {path: layer for path, layer in component.named_modules() if path.endswith(ending)}


def pair(layer: Any, seed: int = 0, rank: int = RANK) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two factors of what is added to the weight of the layer: the second has a kernel of one pixel."""
    rows, columns, *kernel = layer.weight.shape
    generator = torch.Generator().manual_seed(seed + rows + columns)
    down = torch.randn(rank, columns, *kernel, generator=generator)
    return down, torch.randn(rows, rank, *[1] * len(kernel), generator=generator)


def product(down: torch.Tensor, up: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """Return factor * up @ down in float64, in the shape of the weight."""
    return factor * (up.double().flatten(1) @ down.double().flatten(1)).view(len(up), *down.shape[1:])


def kohya(stem: str, down: torch.Tensor, up: torch.Tensor, alpha: float = ALPHA) -> Tensors:
    stem = stem.replace(".", "_")
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(alpha)}


def diffusers(stem: str, down: torch.Tensor, up: torch.Tensor) -> Tensors:
    return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}


def denoiser(pipeline: Any) -> str:
    return "unet" if "unet" in pipeline.components else "transformer"


def check(before: Any, after: Any, added: dict[tuple[str, str], torch.Tensor]) -> None:
    """Require of each layer that it does what W + SCALE * added does in float64."""
    left = set(added)
    for name, part in before.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        now = dict(after.components[name].named_modules())
        for path, layer in part.named_modules():
            if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                own = dict(now[path].named_parameters(recurse=False)).items()
                assert all(torch.equal(each, getattr(layer, key)) for key, each in own), (name, path)
                continue
            left.discard((name, path))
            weight = layer.weight.double() + SCALE * added.get((name, path), torch.zeros(()))
            bias = None if layer.bias is None else layer.bias.double()
            generator = torch.Generator().manual_seed(0)
            if isinstance(layer, torch.nn.Linear):
                x = torch.randn(2, layer.in_features, generator=generator)
                expected = functional.linear(x.double(), weight, bias)
            else:
                x = torch.randn(1, layer.in_channels, 16, 15, generator=generator)
                how = (layer.stride, layer.padding, layer.dilation, layer.groups)
                expected = functional.conv2d(x.double(), weight, bias, *how)
            torch.testing.assert_close(now[path](x).double(), expected, atol=2e-4, rtol=1e-4, msg=f"{name}.{path}")
    assert not left


@pytest.mark.parametrize("preset", TAKE_LORA)
def test_names_of_diffusers(preset: str, plain: Callable[[str], Any], fuse: Callable[..., Any], way: str) -> None:
    pipeline = plain(preset)
    name = denoiser(pipeline)
    tensors, added = {}, {}
    for path, layer in layers(pipeline.components[name], "to_q").items():
        tensors |= diffusers(f"{name}.{path}", *pair(layer))
        added[name, path] = product(*pair(layer))
    with fuse(preset, tensors, way) as fused:
        check(pipeline, fused, added)
    if way == "chosen":  # nothing is left
        check(pipeline, fused, {})


@pytest.mark.parametrize("preset", ["sd15", "sdxl", "flux-schnell", "sd3-medium"])
def test_the_text_encoder_too(preset: str, plain: Callable[[str], Any], fuse: Callable[..., Any], way: str) -> None:
    pipeline = plain(preset)
    path, layer = next(iter(layers(pipeline.text_encoder, "self_attn.q_proj").items()))
    tensors = diffusers(f"text_encoder.{in_files(path)}", *pair(layer))
    with fuse(preset, tensors, way) as fused:
        check(pipeline, fused, {("text_encoder", path): product(*pair(layer))})


# Those that latent-consistency/lcm-lora-sdv1-5 holds, which the preset sd15-lcm fuses.
OF_LCM = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
OF_LCM += ("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")


@pytest.mark.parametrize("preset", ENCODERS)
def test_names_of_kohya_and_an_alpha_for_each_layer(
    preset: str, plain: Callable[[str], Any], fuse: Callable[..., Any], way: str
) -> None:
    pipeline, tensors, added = plain(preset), {}, {}
    found = layers(pipeline.unet, OF_LCM)
    assert all(any(path.endswith(name) for path in found) for name in OF_LCM)
    encoder = f"lora_{ENCODERS[preset]}_"
    for name, prefix, those in (
        ("unet", "lora_unet_", found),
        ("text_encoder", encoder, layers(pipeline.text_encoder, ("q_proj", "out_proj", "fc1"))),
    ):
        for number, (path, layer) in enumerate(those.items()):
            alpha = (1.0, 2.0, 3.0, 8.0)[number % 4]
            tensors |= kohya(prefix + (in_files(path) if name == "text_encoder" else path), *pair(layer), alpha)
            added[name, path] = product(*pair(layer), alpha / RANK)
    with fuse(preset, tensors, way) as fused:
        check(pipeline, fused, added)


def some_file(pipeline: Any, seed: int) -> tuple[Tensors, dict[str, str], dict[tuple[str, str], torch.Tensor]]:
    """Return a file of mixed ranks and alphas, its notes, and what it adds: its alphas stand in it, or in its notes."""
    chance, name = random.Random(seed), denoiser(pipeline)
    parts = [(name, layers(pipeline.components[name], ("to_q", "to_k", "to_out.0", "proj_out")))]
    if hasattr(pipeline, "text_encoder_name") and "CLIP" in type(pipeline.text_encoder).__name__:
        parts.append(("text_encoder", layers(pipeline.text_encoder, ("q_proj", "fc1"))))
    tensors, notes, added = {}, {}, {}
    noted, root = seed % 2 == 1, seed % 4 == 3
    for part, those in parts:
        patterns = {}
        for path, layer in chance.sample(sorted(those.items()), min(len(those), 5)):
            rank, alpha = chance.randint(1, 8), chance.choice([0.5, 1.0, 3.0, 8.0, 20.0])
            stem = f"{part}.{in_files(path) if part == 'text_encoder' else path}"
            tensors |= diffusers(stem, *pair(layer, seed, rank))
            if noted:
                patterns[path] = alpha
            else:
                tensors[f"{stem}.alpha"] = torch.tensor(alpha)
            added[part, path] = product(*pair(layer, seed, rank), alpha / (rank**0.5 if root and noted else rank))
        notes |= {f"{part}.alpha_pattern": patterns, f"{part}.use_rslora": root, f"{part}.r": 4}
    return tensors, {"lora_adapter_metadata": json.dumps(notes)} if noted else {}, added


@pytest.mark.parametrize("preset", TAKE_LORA)
def test_mixed_ranks_and_alphas(preset: str, plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    pipeline = plain(preset)
    for seed in range(4):
        tensors, notes, added = some_file(pipeline, seed)
        for way in ("fused", "chosen") if seed < 2 else ("chosen",):
            with fuse(preset, tensors, way, **notes) as fused:
                check(pipeline, fused, added)


def test_names_of_peft_where_diffusers_knows_them(plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    pipeline = plain("flux2-klein-4b")
    path, layer = next(iter(layers(pipeline.transformer, "to_q").items()))
    with fuse("flux2-klein-4b", diffusers(f"base_model.model.{path}", *pair(layer)), "chosen") as fused:
        check(pipeline, fused, {("transformer", path): product(*pair(layer))})


def kohya_flux(pipeline: Any, stem: str, layer: str) -> tuple[Tensors, tuple[torch.Tensor, torch.Tensor]]:
    """Return a LoRA of one layer of the original FLUX, which is three in diffusers, and its factors."""
    down, _ = pair(pipeline.transformer.get_submodule(layer))
    up = torch.randn(3 * down.shape[1], RANK, generator=torch.Generator().manual_seed(0))
    return kohya(f"lora_unet_{stem}", down, up), (down, up)


def test_kohya_s_names_for_flux(plain: Callable[[str], Any], fuse: Callable[..., Any], way: str) -> None:
    pipeline = plain("flux-schnell")
    block = "transformer_blocks.0.attn"
    tensors, (down, up) = kohya_flux(pipeline, "double_blocks_0_img_attn_qkv", f"{block}.to_q")
    added = {
        ("transformer", f"{block}.to_{letter}"): product(down, part, ALPHA / RANK)
        for letter, part in zip("qkv", up.chunk(3), strict=True)
    }
    for path, layer in layers(pipeline.text_encoder, ("q_proj", "out_proj")).items():
        tensors |= kohya(f"lora_te1_{in_files(path)}", *pair(layer))
        added["text_encoder", path] = product(*pair(layer), ALPHA / RANK)
    with fuse("flux-schnell", tensors, way) as fused:
        check(pipeline, fused, added)


def test_the_three_of_one_layer_of_flux_may_have_ranks_of_their_own(
    plain: Callable[[str], Any], fuse: Callable[..., Any], way: str
) -> None:
    pipeline, block = plain("flux-schnell"), "transformer_blocks.0.attn"
    layer = pipeline.transformer.get_submodule(f"{block}.to_q")
    down, _ = pair(layer, rank=6)
    ups = [pair(layer, seed, 2)[1] for seed in range(3)]
    # As kohya's trainer writes them with split_qkv: diffusers sees the zeros, and takes them apart again.
    tensors = kohya("lora_unet_double_blocks_0_img_attn_qkv", down, torch.block_diag(*ups))
    added = {
        ("transformer", f"{block}.to_{letter}"): product(down[2 * i : 2 * i + 2], ups[i], ALPHA / 6)
        for i, letter in enumerate("qkv")
    }
    with fuse("flux-schnell", tensors, way) as fused:
        check(pipeline, fused, added)


def test_the_format_of_flux_in_which_each_alpha_must_be(plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    pipeline, path = plain("flux-schnell"), "transformer_blocks.0.attn.to_q"
    layer = pipeline.transformer.get_submodule(path)
    tensors = kohya("lora_transformer_transformer_blocks_0_attn_to_q", *pair(layer))
    with fuse("flux-schnell", tensors) as fused:
        check(pipeline, fused, {("transformer", path): product(*pair(layer), ALPHA / RANK)})


def test_a_bias_is_added_too(plain: Callable[[str], Any], fuse: Callable[..., Any], way: str) -> None:
    path, layer = next(iter(layers(plain("sd15").unet, "to_out.0").items()))
    bias = torch.arange(float(layer.out_features))
    with fuse("sd15", {**diffusers(f"unet.{path}", *pair(layer)), f"unet.{path}.lora_B.bias": bias}, way) as fused:
        x = torch.zeros(1, layer.in_features)
        torch.testing.assert_close(fused.unet.get_submodule(path)(x), layer(x) + SCALE * bias)


def two() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(RANK, 8), torch.ones(8, RANK)


def zeros(tensors: Tensors, *ends: str) -> Tensors:
    return {name: torch.zeros_like(each) for name, each in tensors.items() if name.endswith(ends)}


# What is put into a file that fits, under the names of kohya or diffusers: stem is its one layer. None takes out.
A, B = ".lora_A.weight", ".lora_B.weight"
Change = Callable[[str, Tensors], dict[str, torch.Tensor | None]]
HOSTILE: dict[str, tuple[Any, Change, str]] = {
    "DoRA": (kohya, lambda s, t: {f"{s}.dora_scale": torch.ones(8, 1)}, "it is in the format DoRA"),
    "LoHa": (kohya, lambda s, t: {f"{s}.hada_w1_a": torch.ones(2, 2)}, "it is in the format LoHa"),
    "LoKr": (kohya, lambda s, t: {f"{s}.lokr_w1": torch.ones(2, 2)}, "it is in the format LoKr"),
    "LoCon": (kohya, lambda s, t: {f"{s}.lora_mid.weight": torch.ones(2, 2)}, "it is in the format LoCon"),
    "no second factor": (
        diffusers,
        lambda s, t: {s + B: None},
        r"its unet\S+A.weight lacks the second factor",
    ),
    "of kohya": (kohya, lambda s, t: {f"{s}.lora_up.weight": None}, r"its lora_unet_\S+_down.weight lacks the second"),
    "no first factor": (kohya, lambda s, t: {f"{s}.lora_down.weight": None}, r"its lora_unet_\S+_up.weight lacks the"),
    "another width": (
        diffusers,
        lambda s, t: {s + A: torch.ones(RANK, 7)},
        r"its unet\S+ is of \[4, 7\], and the layer takes \[4, \d+\]",
    ),
    "another height": (diffusers, lambda s, t: {s + B: torch.ones(9, RANK)}, r"is of \[9, 4\], and the layer takes"),
    "two ranks": (
        kohya,
        lambda s, t: {f"{s}.lora_down.weight": torch.ones(2, t[f"{s}.lora_down.weight"].shape[1])},
        "layer takes",
    ),
    "rank 0": (diffusers, lambda s, t: {s + A: t[s + A][:0], s + B: t[s + B][:, :0].clone()}, "and the layer takes"),
    "one number": (diffusers, lambda s, t: {s + B: torch.tensor(1.0)}, "and the layer takes"),
    "three dimensions": (diffusers, lambda s, t: {s + A: t[s + A][..., None]}, "and the layer takes"),
    "an unknown layer": (diffusers, lambda s, t: diffusers("unet.no.such", *two()), "its unet.no.such.* for no layer"),
    "no linear layer": (diffusers, lambda s, t: diffusers("unet.conv_norm_out", *two()), "for no layer of this model"),
    "another component": (diffusers, lambda s, t: diffusers("safety_checker.x", *two()), "for no layer of this model"),
    "the names of PEFT": (
        diffusers,
        lambda s, t: diffusers("base_model.model.x", *two()),
        "for no layer of this model",
    ),
    "the name of an adapter": (
        diffusers,
        lambda s, t: {s + A: None, s + B: None, **{f"{s}.lora_{e}.default.weight": torch.ones(4, 4) for e in "AB"}},
        r"its unet\S+lora_A.default.weight is for no layer of this model",
    ),
    "FLUX": (kohya, lambda s, t: kohya("lora_unet_double_blocks_0_img_attn_qkv", *two()), "double_blocks"),
    "no LoRA": (
        diffusers,
        lambda s, t: {"unet.conv_in.weight": torch.ones(3)},
        "its unet.conv_in.weight lacks the second factor",
    ),
    "a bias": (
        diffusers,
        lambda s, t: {f"{s}.lora_B.bias": torch.ones(8)},
        r"B.bias is of \[8\], and the layer takes \[\]",
    ),
    "alpha NaN": (
        kohya,
        lambda s, t: {f"{s}.alpha": torch.tensor(float("nan"))},
        r"alpha of its lora_unet_\S+ is not one",
    ),
    "alpha infinite": (diffusers, lambda s, t: {f"{s}.alpha": torch.tensor(float("inf"))}, "is not one finite number"),
    "two alphas": (kohya, lambda s, t: {f"{s}.alpha": torch.ones(2)}, r"its lora_unet_\S+.alpha has no effect"),
    "an alpha of nothing": (diffusers, lambda s, t: {"x.alpha": torch.tensor(1.0)}, "its x.alpha has no effect"),
    "whole numbers": (
        diffusers,
        lambda s, t: {s + A: t[s + A].to(torch.int8)},
        "is of I8, and not of F16, BF16 or F32",
    ),
    "zeros": (kohya, lambda s, t: zeros(t, "down.weight", "up.weight"), "it changes nothing"),
    "second factors of zeros": (diffusers, lambda s, t: zeros(t, B), "it changes nothing"),
    "an alpha of 0": (kohya, lambda s, t: {f"{s}.alpha": torch.tensor(0.0)}, "is not one finite number other than 0"),
    "nothing": (diffusers, lambda s, t: dict.fromkeys(t), "it is not a whole safetensors file"),
}


@pytest.mark.parametrize("preset", ["sd15", "sdxl"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_cannot_have_its_whole_effect_is_refused(
    what: str, preset: str, plain: Callable[[str], Any], loras_of: Callable[..., Settings]
) -> None:
    names, change, sentence = HOSTILE[what]
    path, layer = next(iter(layers(plain(preset).unet, "to_q").items()))
    stem = f"lora_unet_{path.replace('.', '_')}" if names is kohya else f"unet.{path}"
    tensors = names(stem, *pair(layer))
    tensors |= change(stem, tensors)
    tensors = {name: each.contiguous() for name, each in tensors.items() if each is not None}
    start = r"The LoRA style \(style.safetensors\) does not fit a StableDiffusion(XL)?Pipeline: "
    with pytest.raises(WeightsError, match=f"{start}.*{sentence}.*Use one that was made for this model"):
        Loras(plain(preset), loras_of(preset, {"style": tensors}, {}))


def test_a_fused_one_is_refused_as_well(loras_of: Callable[..., Settings]) -> None:
    with pytest.raises(WeightsError, match=r"its unet\.no\.such\.lora_A\.weight is for no layer of this model"):
        read_pipeline(loras_of("sd15", {"style": diffusers("unet.no.such", *two())}, {"style": SCALE}), "cpu")


@pytest.mark.parametrize("notes", ["x", "[]", '{"unet.lora_alpha": "x"}', '{"unet.alpha_pattern": {"(": 1}}', "NaN"])
def test_notes_that_cannot_be_read_are_refused(
    notes: str, plain: Callable[[str], Any], loras_of: Callable[..., Settings]
) -> None:
    path, layer = next(iter(layers(plain("sd15").unet, "to_q").items()))
    tensors = diffusers(f"unet.{path}", *pair(layer))
    with pytest.raises(WeightsError, match="does not fit a StableDiffusionPipeline: its lora_adapter_metadata"):
        Loras(plain("sd15"), loras_of("sd15", {"style": tensors}, {}, notes={"lora_adapter_metadata": notes}))


# A block that this model has not, and a text encoder that diffusers leaves out of a LoRA without a word.
@pytest.mark.parametrize("other", ["lora_unet_double_blocks_7_img_attn_qkv", "lora_te2_encoder_block_0_layer_0_q"])
def test_a_part_of_kohya_s_names_for_flux_is_refused(
    plain: Callable[[str], Any], loras_of: Callable[..., Settings], other: str
) -> None:
    layer = "transformer_blocks.0.attn.to_q"
    tensors, (down, up) = kohya_flux(plain("flux-schnell"), "double_blocks_0_img_attn_qkv", layer)
    # One that fits is three layers. So there are as many layers as the file has pairs, and more.
    tensors |= {f"{other}.lora_down.weight": down.clone(), f"{other}.lora_up.weight": up.clone()}
    with pytest.raises(WeightsError, match=rf"does not fit a FluxPipeline: its {other}\S+ "):
        Loras(plain("flux-schnell"), loras_of("flux-schnell", {"style": tensors}, {}))


@pytest.mark.parametrize("preset", ["sd3-medium", "qwen-image-2512", "z-image-turbo"])
def test_a_file_for_flux_is_refused_by_others(
    preset: str, plain: Callable[[str], Any], loras_of: Callable[..., Settings]
) -> None:
    tensors, _ = kohya_flux(plain("flux-schnell"), "double_blocks_0_img_attn_qkv", "transformer_blocks.0.attn.to_q")
    with pytest.raises(WeightsError, match=r"its lora_unet_double_blocks_0_img_attn_qkv\S+ "):
        Loras(plain(preset), loras_of(preset, {"style": tensors}, {}))


@pytest.mark.parametrize("layer", ["x_embedder", "transformer_blocks.0.attn.to_q"])
def test_a_lora_that_would_make_a_layer_larger_is_refused(
    plain: Callable[[str], Any], loras_of: Callable[..., Settings], layer: str
) -> None:
    # As those for FLUX's control models are: diffusers makes the layer larger, and the pipeline fails.
    found = plain("flux-schnell").transformer.get_submodule(layer)
    tensors = diffusers(
        f"transformer.{layer}", torch.ones(RANK, 2 * found.in_features), torch.ones(found.out_features, RANK)
    )
    with pytest.raises(WeightsError, match=r"does not fit a FluxPipeline: .* and the layer takes"):
        Loras(plain("flux-schnell"), loras_of("flux-schnell", {"style": tensors}, {}))


def test_a_family_that_cannot_take_one_says_so(plain: Callable[[str], Any], loras_of: Callable[..., Settings]) -> None:
    tensors = {"unet.x.lora_A.weight": torch.ones(1, 1)}
    with pytest.raises(WeightsError, match="a PixArtSigmaPipeline cannot take a LoRA"):
        Loras(plain("pixart-sigma"), loras_of("pixart-sigma", {"style": tensors}, {}))


def test_a_file_that_is_not_whole_or_not_one_is_refused(
    loras_of: Callable[..., Settings], plain: Callable[[str], Any], tmp_path: Path
) -> None:
    settings = loras_of("sd15", {"style": some_tensors(plain("sd15"))}, {})
    file = tmp_path / "lora-style" / "style.safetensors"
    whole = file.read_bytes()
    broken = [whole[:-100], whole[:100], b"", b"<html>", b"\xff" * 8 + whole[8:], whole.replace(b"F32", b"F99", 1)]
    for content in broken:
        file.write_bytes(content)
        with pytest.raises(
            WeightsError, match=r"The LoRA style \(style.safetensors\) .* is not a whole safetensors file"
        ):
            Loras(plain("sd15"), settings)
    file.with_name("other.safetensors").touch()
    with pytest.raises(WeightsError, match=r"The LoRA style is one file, and .* holds 2"):
        Loras(plain("sd15"), settings)


def some_tensors(pipeline: Any, seed: int = 0) -> Tensors:
    """Return a LoRA of many layers: of the UNet or transformer, and of the text encoder where LoRAs can be for it."""
    parts = [(denoiser(pipeline), denoiser(pipeline), ("to_q", "to_out.0"))]
    if hasattr(pipeline, "text_encoder_name") and "CLIP" in type(pipeline.text_encoder).__name__:
        parts.append(("text_encoder", "text_encoder", ("q_proj", "fc1")))
    tensors = {}
    for name, prefix, endings in parts:
        for path, layer in layers(pipeline.components[name], endings).items():
            down, up = pair(layer, seed)
            stem = f"{prefix}.{in_files(path) if name == 'text_encoder' else path}"
            tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up / 2}
    return tensors


def choose(**scales: float) -> list[dict[str, Any]]:
    return [{"name": name, "scale": scale} for name, scale in scales.items()]


@pytest.mark.parametrize("preset", TAKE_LORA)
def test_what_a_request_chooses_is_as_if_it_were_fused(
    preset: str, plain: Callable[[str], Any], loras_of: Callable[..., Settings], serve: Callable[..., Served]
) -> None:
    loras = {name: some_tensors(plain(preset), seed) for seed, name in enumerate(("ink", "oil"))}
    choices = ({"ink": 0.5}, {"oil": 1.5}, {"ink": -0.5, "oil": 0.7})
    base = serve(loras_of(preset, {}, {})).image()
    fused = [serve(loras_of(preset, {name: loras[name] for name in scales}, scales)).image() for scales in choices]
    served = serve(loras_of(preset, loras, {}))
    assert served.image() == base
    for scales, expected in zip(choices, fused, strict=True):
        chosen = served.image(loras=choose(**scales))
        assert abs(pixels_of(chosen) - pixels_of(expected)).max() <= 2, scales
        assert abs(pixels_of(chosen) - pixels_of(base)).max() > 5, scales
        # The order in which they are named is none of their effect, and the next image is the base model's.
        assert abs(pixels_of(served.image(loras=choose(**scales)[::-1])) - pixels_of(expected)).max() <= 2, scales
        assert served.image() == base


@pytest.mark.parametrize("preset", ["sdxl", "flux-schnell"])
def test_one_that_is_fused_and_one_that_is_chosen(
    preset: str, plain: Callable[[str], Any], loras_of: Callable[..., Settings], serve: Callable[..., Served]
) -> None:
    loras = {name: some_tensors(plain(preset), seed) for seed, name in enumerate(("ink", "oil"))}
    warm = serve(loras_of(preset, {"oil": loras["oil"]}, {"oil": 0.5})).image()
    both = serve(loras_of(preset, loras, {"ink": 0.7, "oil": 0.5})).image()
    # The first in config.yaml is chosen: taking away what is left of the fused one must not take it away.
    served = serve(loras_of(preset, loras, {"oil": 0.5}))
    assert served.image() == warm
    assert abs(pixels_of(served.image(loras=choose(ink=0.7))) - pixels_of(both)).max() <= 2
    assert served.image() == warm
    with pytest.raises(ValidationError, match="there is no LoRA of that name: choose from ink"):
        served.ask(loras=choose(oil=0.5))


def test_left_out_the_scale_is_that_of_the_config(
    plain: Callable[[str], Any], loras_of: Callable[..., Settings], serve: Callable[..., Served]
) -> None:
    settings = loras_of("sd15", {"ink": some_tensors(plain("sd15"))}, {})
    entry = settings.loras[0].model_copy(update={"scale": -0.5})
    served = serve(settings.model_copy(update={"loras": [entry]}))
    assert served.image(loras=[{"name": "ink"}]) == served.image(loras=choose(ink=-0.5))
    assert served.image(loras=[{"name": "ink"}]) != served.image(loras=choose(ink=0.5))


@pytest.mark.parametrize("more", [{"strength": 0.75}, {"mask": WHITE}])
def test_a_start_image_and_a_mask_go_with_them(
    more: dict[str, Any], plain: Callable[[str], Any], loras_of: Callable[..., Settings], serve: Callable[..., Served]
) -> None:
    tensors = some_tensors(plain("sd15"))
    start = serve(loras_of("sd15", {}, {})).image()
    body = {"image": start, **more}
    fused = serve(loras_of("sd15", {"ink": tensors}, {"ink": 0.5})).image(**body)
    served = serve(loras_of("sd15", {"ink": tensors}, {}))
    base = served.image(**body)
    assert abs(pixels_of(served.image(**body, loras=choose(ink=0.5))) - pixels_of(fused)).max() <= 2
    assert served.image(**body) == base != served.image(**body, loras=choose(ink=0.5))


@pytest.mark.parametrize("preset", ["sd15", "flux-schnell"])
def test_a_fault_leaves_the_base_model(
    preset: str,
    plain: Callable[[str], Any],
    loras_of: Callable[..., Settings],
    serve: Callable[..., Served],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = serve(loras_of(preset, {"ink": some_tensors(plain(preset))}, {}))
    base, chosen = served.image(), served.image(loras=choose(ink=0.5))
    model = served.pipeline.components[denoiser(served.pipeline)]
    true, calls = pipelines._forward, []

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def fail_halfway(*arguments: Any) -> Any:
        calls.append(arguments)
        return fail() if len(calls) == 3 else true(*arguments)

    for owner, name, instead in (
        (served.pipeline.text_encoder, "forward", fail),
        # In the middle of a step, and of the choice.
        (next(part for part in model.modules() if type(part).__name__.endswith("TransformerBlock")), "forward", fail),
        (pipelines, "_forward", fail_halfway),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, instead)
            assert served.ask(loras=choose(ink=0.5)).status_code == 503
        assert served.image() == base, name
        assert served.image(loras=choose(ink=0.5)) == chosen, name


def test_a_file_that_is_gone_when_it_is_asked_for_fails_one_request(
    plain: Callable[[str], Any], loras_of: Callable[..., Settings], serve: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve(loras_of("sd15", {"ink": some_tensors(plain("sd15"))}, {}))
    base, file = served.image(), tmp_path / "lora-ink" / "style.safetensors"
    file.rename(tmp_path / "away")
    with pytest.raises(OSError, match="No such file"):
        served.ask(loras=choose(ink=0.5))
    assert served.image() == base
    (tmp_path / "away").rename(file)
    assert served.image(loras=choose(ink=0.5)) != base


def test_those_that_were_used_last_stay_in_memory(
    plain: Callable[[str], Any],
    loras_of: Callable[..., Settings],
    serve: Callable[..., Served],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    alive: dict[str, Any] = {}

    def proved(pipeline: Any, folder: Path, lora: Any) -> Callable[[], Any]:
        true = prove(pipeline, folder, lora)

        def reading() -> Any:
            pairs = true()
            alive[lora.name] = weakref.ref(pairs[0][1])
            read.append(lora.name)
            return pairs

        return reading

    monkeypatch.setattr(pipelines, "prove", proved)
    names = ["ink", "oil", "wax", "tar"]
    tensors = {name: some_tensors(plain("sd15"), seed) for seed, name in enumerate(names)}
    served = serve(loras_of("sd15", tensors, {}, loras=2, loras_in_memory=2))

    def ask(*those: str) -> list[str]:
        """Ask for an image, and return which files are read for it."""
        read.clear()
        images[those] = served.image(loras=choose(**dict.fromkeys(those, 0.5)))
        return list(read)

    images: dict[tuple[str, ...], str] = {}
    assert read == []
    assert ask("ink") == ["ink"]
    assert ask("oil") == ["oil"]
    assert ask("ink") == ask() == []
    assert ask("wax") == ["wax"]  # and oil goes
    assert ask("ink") == []
    gc.collect()
    assert {name for name, down in alive.items() if down() is not None} == {"ink", "wax"}
    assert ask("oil", "wax") == ["oil"]
    assert ask("tar", "ink") == ["ink", "tar"]
    gc.collect()
    assert {name for name, down in alive.items() if down() is not None} == {"tar", "ink"}
    assert len(set(images.values())) == len(images)
    again = dict(images)
    for those, image in again.items():
        ask(*those)
        assert images[those] == image


def test_a_lora_that_makes_no_numbers_ends_no_replica(
    plain: Callable[[str], Any], loras_of: Callable[..., Settings], serve: Callable[..., Served]
) -> None:
    huge = {name: tensor * 1e30 for name, tensor in some_tensors(plain("sd15")).items()}
    served = serve(loras_of("sd15", {"ink": huge}, {}))
    base = served.image()
    for _ in range(3):
        assert served.ask(loras=choose(ink=1.0)).status_code == 500
        assert served.healthy()
    assert served.image() == base


def test_requests_at_the_same_time_do_not_mix(
    plain: Callable[[str], Any], loras_of: Callable[..., Settings], serve: Callable[..., Served]
) -> None:
    pipeline = plain("sd15")
    loras = {name: some_tensors(pipeline, seed) for seed, name in enumerate(("ink", "oil"))}
    served = serve(loras_of("sd15", loras, {}))
    bodies = [{}, {"loras": choose(ink=0.5)}, {"loras": choose(oil=0.5)}, {"loras": choose(ink=1.0, oil=0.5)}]
    alone = [served.image(**body) for body in bodies]
    assert len(set(alone)) == len(bodies)
    # Two at once, as with predict_concurrency 2.
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda body: served.image(**body), bodies * 4)) == alone * 4


@pytest.mark.parametrize(
    ("loras", "sentence"),
    [
        ([{"name": "chalk"}], "there is no LoRA of that name: choose from ink, oil"),
        ([{"name": "ink"}, {"name": "ink", "scale": 0.5}], "name each LoRA once"),
        ([{"name": "ink"}] * 5, "at most 4"),
        (choose(ink=2.1), "less than or equal to 2"),
        (choose(ink=-2.1), "greater than or equal to -2"),
        (choose(ink=float("nan")), "finite number"),
        ([{"name": "ink", "scale": "0.5"}], "valid number"),
        ([{"name": "ink", "weight": 0.5}], "not permitted"),
        ([{"scale": 0.5}], "Field required"),
        (["ink"], "valid dictionary"),
        ({"name": "ink"}, "valid list"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(
    loras: Any,
    sentence: str,
    plain: Callable[[str], Any],
    loras_of: Callable[..., Settings],
) -> None:
    settings = loras_of("sd15", {"ink": {"x": torch.ones(1)}, "oil": {"x": torch.ones(1)}}, {})
    with pytest.raises(ValidationError, match=sentence):
        request_model(settings).parse_obj({"prompt": "x", "loras": loras})
    # A model that has none.
    without = request_model(settings.model_copy(update={"loras": []}))
    assert without.parse_obj({"prompt": "x", "loras": []}).loras == []
    with pytest.raises(ValidationError, match="loras cannot be used by this model"):
        without.parse_obj({"prompt": "x", "loras": [{"name": "ink"}]})


def test_millions_of_choices_are_refused_at_the_first(settings_of: Make) -> None:
    body = b'{"prompt": "x", "loras": [' + b"1," * 1_000_000 + b"1]}"
    with pytest.raises(ValidationError) as caught:
        request_model(settings_of("sd15")).parse_raw(body)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize("preset", TAKE_LORA)
def test_what_is_chosen_is_in_the_dtype_of_its_layer_and_leaves_nothing(
    preset: str, plain: Callable[[str], Any], loras_of: Callable[..., Settings]
) -> None:
    settings = loras_of(preset, {"ink": some_tensors(plain(preset))}, {}, BLOCKS[preset]["dtype"])
    pipeline = read_pipeline(settings, "cpu")
    loras = Loras(pipeline, settings)
    layers = [layer for part in pipeline.components.values() if hasattr(part, "modules") for layer in part.modules()]
    assert not any("forward" in vars(layer) for layer in layers)
    with loras.chosen({"ink": 1.0}):
        (pairs,) = loras._ready.values()
        assert len(pairs) == len(some_tensors(plain(preset))) / 2
        for layer, down, up, *_ in pairs:
            assert "forward" in vars(layer)
            assert down.dtype == up.dtype == layer.weight.dtype
    assert not any("forward" in vars(layer) for layer in layers)

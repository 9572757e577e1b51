"""A LoRA has the effect that its file says, fused or chosen by a request, or one sentence says why not."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cold_start.pipeline import read_pipeline
from cold_start.weights import WeightsError
from conftest import BLOCKS, FACTS, FAMILIES, Make, Served, pixels_of
from model.request import request_model
from pipeline_settings import Settings
from pydantic import ValidationError
from safetensors.torch import save_file

RANK, ALPHA, SCALE = 4, 2.0, 0.5
Tensors = dict[str, torch.Tensor]
TAKE_LORA = [preset for preset in FAMILIES if FACTS[preset].takes_lora]


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

    def settings(preset: str, loras: dict[str, Tensors], scales: dict[str, float], dtype: str = "float32") -> Settings:
        for folder in weights(preset).iterdir():
            if not (tmp_path / folder.name).exists():
                (tmp_path / folder.name).symlink_to(folder)
        files, entries = dict(BLOCKS[preset]["weight_files"]), []
        for name, tensors in loras.items():
            (tmp_path / f"lora-{name}").mkdir(exist_ok=True)
            save_file(tensors, tmp_path / f"lora-{name}" / "style.safetensors")
            files[f"lora-{name}"] = ["style.safetensors"]
            entries.append({"name": name, "scale": scales.get(name, 1.0), "fused": name in scales})
        return settings_of(preset, tmp_path, loras=entries, weight_files=files, cpu_dtype=dtype)

    return settings


@pytest.fixture(params=["fused", "chosen"])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fuse(loras_of: Callable[..., Settings]) -> Callable[..., Any]:
    """Return the pipeline with a LoRA of these tensors."""

    def fused(preset: str, tensors: Tensors, way: str = "fused") -> Any:
        scales = {"style": SCALE} if way == "fused" else {}
        return read_pipeline(loras_of(preset, {"style": tensors}, scales), "cpu")

    return fused


def in_files(path: str) -> str:
    """Return how LoRA files name a layer of CLIP, whose text model is flat since transformers 5."""
    return path if path.startswith("text_model.") else f"text_model.{path}"


def layers(component: Any, ending: str | tuple[str, ...]) -> dict[str, Any]:
    return {path: layer for path, layer in component.named_modules() if path.endswith(ending)}


def pair(layer: Any, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two factors of what is added to the weight of the layer."""
    generator = torch.Generator().manual_seed(seed + layer.in_features + layer.out_features)
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


# Those that latent-consistency/lcm-lora-sdv1-5 holds, which the preset sd15-lcm fuses.
OF_LCM = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
OF_LCM += ("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")


def test_every_layer_of_the_lcm_lora(plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    pipeline = plain("sd15")
    found = layers(pipeline.unet, OF_LCM)
    assert all(any(path.endswith(name) for path in found) for name in OF_LCM)
    tensors, added = {}, {}
    generator = torch.Generator().manual_seed(0)
    for path, layer in found.items():
        rows, columns, *kernel = layer.weight.shape
        # Of a convolution the second factor has a kernel of one pixel.
        down = torch.randn(RANK, columns, *kernel, generator=generator)
        up = torch.randn(rows, RANK, *[1] * len(kernel), generator=generator)
        stem = "lora_unet_" + path.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
        added["unet", path] = (up.flatten(1) @ down.flatten(1)).view_as(layer.weight) * ALPHA / RANK
    check(pipeline, fuse("sd15", tensors), added)


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
def test_another_format_is_named(
    preset: str, kind: str, plain: Callable[[str], Any], fuse: Callable[..., Any], way: str
) -> None:
    with pytest.raises(WeightsError, match=f"is in the format {kind}"):
        fuse(preset, unet_tensors(plain(preset), kind), way)


def test_a_lora_of_another_family_is_refused(plain: Callable[[str], Any], fuse: Callable[..., Any], way: str) -> None:
    path, layer = next(iter(layers(plain("flux-schnell").transformer, "to_q").items()))
    down, up = pair(layer)
    stem = f"transformer.{path}"
    with pytest.raises(WeightsError, match=r"does not fit a StableDiffusionPipeline"):
        fuse("sd15", {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, way)


def test_a_lora_of_another_size_is_refused(plain: Callable[[str], Any], fuse: Callable[..., Any], way: str) -> None:
    path, layer = next(iter(layers(plain("sd15").unet, "to_q").items()))
    tensors = {
        f"unet.{path}.lora_A.weight": torch.ones(RANK, layer.in_features + 8),
        f"unet.{path}.lora_B.weight": torch.ones(layer.out_features, RANK),
    }
    with pytest.raises(WeightsError, match=r"does not fit"):
        fuse("sd15", tensors, way)


def test_a_lora_of_which_only_a_part_fits_is_refused(
    plain: Callable[[str], Any], fuse: Callable[..., Any], way: str
) -> None:
    path, layer = next(iter(layers(plain("sd15").unet, "to_q").items()))
    down, up = pair(layer)
    tensors = {
        f"unet.{stem}.lora_{letter}.weight": tensor.clone()
        for stem in (path, "no.such.layer")
        for letter, tensor in (("A", down), ("B", up))
    }
    with pytest.raises(WeightsError, match=r"does not fit"):
        fuse("sd15", tensors, way)


def test_a_lora_of_zeros_is_refused(plain: Callable[[str], Any], fuse: Callable[..., Any], way: str) -> None:
    path, layer = next(iter(layers(plain("sd15").unet, "to_q").items()))
    down, up = pair(layer)
    tensors = {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": torch.zeros_like(up)}
    with pytest.raises(WeightsError, match=r"does not fit"):
        fuse("sd15", tensors, way)


def test_a_lora_with_a_bias_that_the_layer_has_not_is_refused(
    plain: Callable[[str], Any], fuse: Callable[..., Any]
) -> None:
    path, layer = next(iter(layers(plain("sd15").unet, "to_q").items()))
    down, up = pair(layer)
    stem = f"unet.{path}.lora"
    tensors = {f"{stem}_A.weight": down, f"{stem}_B.weight": up, f"{stem}_B.bias": torch.ones(layer.out_features)}
    with pytest.raises(WeightsError, match=r"does not fit"):
        fuse("sd15", tensors)


def test_a_family_that_cannot_take_one_says_so(fuse: Callable[..., Any], way: str) -> None:
    with pytest.raises(WeightsError, match="a PixArtSigmaPipeline cannot take a LoRA"):
        fuse("pixart-sigma", {"unet.x.lora_A.weight": torch.ones(1, 1)}, way)


def kohya_flux(pipeline: Any, stem: str, layer: str) -> tuple[Tensors, tuple[torch.Tensor, torch.Tensor]]:
    """Return a LoRA of one layer of the original FLUX, which is three in diffusers, and its factors."""
    down, _ = pair(pipeline.transformer.get_submodule(layer))
    up = torch.randn(3 * down.shape[1], RANK, generator=torch.Generator().manual_seed(0))
    stem = f"lora_unet_{stem}"
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(ALPHA)}
    return tensors, (down, up)


def test_kohya_s_names_for_flux(plain: Callable[[str], Any], fuse: Callable[..., Any]) -> None:
    pipeline = plain("flux-schnell")
    block = "transformer_blocks.0.attn"
    tensors, (down, up) = kohya_flux(pipeline, "double_blocks_0_img_attn_qkv", f"{block}.to_q")
    added = {
        ("transformer", f"{block}.to_{letter}"): part @ down * ALPHA / RANK
        for letter, part in zip("qkv", up.chunk(3), strict=True)
    }
    for path, layer in layers(pipeline.text_encoder, ("q_proj", "out_proj")).items():
        text_down, text_up = pair(layer)
        stem = f"lora_te1_{in_files(path)}".replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": text_down, f"{stem}.lora_up.weight": text_up}
        tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
        added["text_encoder", path] = text_up @ text_down * ALPHA / RANK
    check(pipeline, fuse("flux-schnell", tensors), added)


# A block that this model has not, and a text encoder that diffusers leaves out of a LoRA without a word.
@pytest.mark.parametrize("other", ["lora_unet_double_blocks_7_img_attn_qkv", "lora_te2_encoder_block_0_layer_0_q"])
def test_a_part_of_kohya_s_names_for_flux_is_refused(
    plain: Callable[[str], Any], fuse: Callable[..., Any], other: str, way: str
) -> None:
    layer = "transformer_blocks.0.attn.to_q"
    tensors, (down, up) = kohya_flux(plain("flux-schnell"), "double_blocks_0_img_attn_qkv", layer)
    # One that fits is three layers. So there are as many layers as the file has pairs, and more.
    tensors |= {f"{other}.lora_down.weight": down.clone(), f"{other}.lora_up.weight": up.clone()}
    with pytest.raises(WeightsError, match=r"does not fit a FluxPipeline"):
        fuse("flux-schnell", tensors, way)


@pytest.mark.parametrize("layer", ["x_embedder", "transformer_blocks.0.attn.to_q"])
def test_a_lora_that_would_make_a_layer_larger_is_refused(
    plain: Callable[[str], Any], fuse: Callable[..., Any], layer: str, way: str
) -> None:
    # As those for FLUX's control models are: diffusers makes the layer larger, and the pipeline fails.
    found = plain("flux-schnell").transformer.get_submodule(layer)
    stem = f"transformer.{layer}"
    down, up = torch.ones(RANK, 2 * found.in_features), torch.ones(found.out_features, RANK)
    with pytest.raises(WeightsError, match=r"does not fit a FluxPipeline"):
        fuse("flux-schnell", {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, way)


def test_a_file_that_is_not_whole_or_not_one_is_refused(
    loras_of: Callable[..., Settings], plain: Callable[[str], Any], tmp_path: Path
) -> None:
    settings = loras_of("sd15", {"style": some_tensors(plain("sd15"))}, {})
    file = tmp_path / "lora-style" / "style.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"The LoRA style \(style.safetensors\) does not fit"):
        read_pipeline(settings, "cpu")
    file.with_name("other.safetensors").touch()
    with pytest.raises(WeightsError, match=r"The LoRA style is one file, and .* holds 2"):
        read_pipeline(settings, "cpu")


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


def test_a_start_image_goes_with_them(
    plain: Callable[[str], Any], loras_of: Callable[..., Settings], serve: Callable[..., Served]
) -> None:
    tensors = some_tensors(plain("sd15"))
    start = serve(loras_of("sd15", {}, {})).image()
    body = {"image": start, "strength": 0.75}
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

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    for owner, name in (
        (served.pipeline.components[denoiser(served.pipeline)], "forward"),
        (served.pipeline.text_encoder, "forward"),
        # Halfway through the choice.
        ([layer for layer in served.pipeline.text_encoder.modules() if hasattr(layer, "set_scale")][1], "set_scale"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            assert served.ask(loras=choose(ink=0.5)).status_code == 503
        assert served.image() == base, name
        assert served.image(loras=choose(ink=0.5)) == chosen, name


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
        (None, "valid list"),
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
def test_what_is_laid_beside_the_weights_is_as_they_are(
    preset: str, plain: Callable[[str], Any], loras_of: Callable[..., Settings]
) -> None:
    def wrapped(pipeline: Any) -> dict[str, Any]:
        parts = {name: part for name, part in pipeline.components.items() if hasattr(part, "named_modules")}
        found = {(name, path): layer for name, part in parts.items() for path, layer in part.named_modules()}
        return {path: layer for path, layer in found.items() if hasattr(layer, "get_delta_weight")}

    assert wrapped(plain(preset)) == {}
    settings = loras_of(preset, {"ink": some_tensors(plain(preset))}, {}, BLOCKS[preset]["dtype"])
    found = wrapped(read_pipeline(settings, "cpu"))
    assert len(found) == len(settings.loras) * len(some_tensors(plain(preset))) / 2
    for path, layer in found.items():
        beside = {tensor.dtype for name, tensor in layer.named_parameters() if ".lora-ink." in name}
        assert beside == {layer.get_base_layer().weight.dtype}, path
    # Fused, nothing is left of them.
    settings = loras_of(preset, {"ink": some_tensors(plain(preset))}, {"ink": 0.5}, BLOCKS[preset]["dtype"])
    assert wrapped(read_pipeline(settings, "cpu")) == {}

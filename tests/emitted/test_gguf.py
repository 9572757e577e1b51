"""Components in 8 bits: what load() takes of a GGUF file, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cold_start.pipeline
import diffusers
import gguf
import numpy as np
import pytest
import torch
from cold_start.pipeline import read_pipeline
from cold_start.weights import WeightsError
from conftest import BLOCKS, FACTS, Make, Served
from pipeline_settings import SettingsError

PACKED = [
    preset
    for preset, block in BLOCKS.items()
    if any((part["file"] or "").endswith(".gguf") for part in block["components"].values())
]
# name, tensor, type: the type is that of its numbers in the file
Tensors = list[tuple[str, Any, gguf.GGMLQuantizationType]]


def rewrite(file: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Write the GGUF file again, with other tensors."""
    write(file, change([(t.name, t.data.copy(), t.tensor_type) for t in gguf.GGUFReader(file).tensors]))


def write(file: Path, tensors: Tensors) -> None:
    writer = gguf.GGUFWriter(file, "tiny")
    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def copy_of(weights: Callable[[str], Path], tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Return a copy of the preset's tiny weights, and its GGUF file."""

    def copy(preset: str) -> tuple[Path, Path]:
        folder = Path(shutil.copytree(weights(preset), tmp_path / "weights"))
        (file,) = folder.rglob("*.gguf")
        return folder, file

    return copy


@pytest.mark.parametrize("preset", PACKED)
def test_the_image_is_that_of_the_numbers_which_the_file_holds(
    preset: str, settings_of: Make, serve: Callable[..., Served]
) -> None:
    served = serve(settings_of(preset, cpu_dtype="float32"))
    usual = served.image()
    assert served.image() == usual
    transformer = served.pipeline.transformer
    # The same layers, unpacked once and for all.
    transformer.dequantize()
    assert not any(hasattr(parameter, "quant_type") for parameter in transformer.parameters())
    assert served.image() == usual
    assert served.healthy()


@pytest.mark.parametrize("kind", ["BF16", "F32"])
@pytest.mark.parametrize("preset", PACKED)
def test_a_matrix_that_is_not_in_8_bits_is_read_too(
    preset: str, kind: str, settings_of: Make, copy_of: Any, serve: Callable[..., Served]
) -> None:
    """Makers leave some so: the files of FLUX.2 klein are larger than 8 bits of each number."""
    usual = serve(settings_of(preset)).image()
    folder, file = copy_of(preset)
    packed, other = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType[kind]

    def change(tensors: Tensors) -> Tensors:
        wide = sorted(name for name, _, each in tensors if each == packed)[::2]
        # diffusers unpacks into float16, and computes in bfloat16: there these are the same numbers.
        return [
            (name, gguf.quantize(np.float32(np.float16(gguf.dequantize(data, each))), other), other)
            if name in wide
            else (name, data, each)
            for name, data, each in tensors
        ]

    rewrite(file, change)
    assert {packed, other} <= {tensor.tensor_type for tensor in gguf.GGUFReader(file).tensors if tensor.data.ndim == 2}
    assert serve(settings_of(preset, folder)).image() == usual


@pytest.mark.parametrize("preset", PACKED)
def test_a_damaged_file_is_a_sentence(preset: str, settings_of: Make, copy_of: Any) -> None:
    folder, file = copy_of(preset)
    content = file.read_bytes()
    damaged = {"truncated": content[:-1000], "header only": content[:500], "garbage": b"\xff" * 1000, "empty": b""}
    for kind, broken in damaged.items():
        file.write_bytes(broken)
        with pytest.raises(WeightsError, match=r"transformer cannot be read from .*check patterns and commit"):
            read_pipeline(settings_of(preset, folder), "cpu")
            pytest.fail(kind)
    file.write_bytes(content)
    rewrite(file, lambda tensors: tensors[1:])
    with pytest.raises(WeightsError, match=r"transformer cannot be read from .*: no file has one of its tensors"):
        read_pipeline(settings_of(preset, folder), "cpu")


def test_a_file_of_another_model_is_a_sentence(settings_of: Make, copy_of: Any, weights: Any) -> None:
    folder, file = copy_of("flux-schnell-8bit")
    shutil.copy(next(weights("flux2-klein-4b-8bit").rglob("*.gguf")), file)
    with pytest.raises(WeightsError, match="transformer cannot be read from"):
        read_pipeline(settings_of("flux-schnell-8bit", folder), "cpu")


def test_a_packed_tensor_that_no_layer_unpacks_is_refused(settings_of: Make, copy_of: Any) -> None:
    """Some files hold what is no matrix in bfloat16. To diffusers that is packed, and only linear layers unpack."""
    folder, file = copy_of("flux2-klein-4b-8bit")
    bf16 = gguf.GGMLQuantizationType.BF16

    def change(tensors: Tensors) -> Tensors:
        return [
            (name, gguf.quantize(data, bf16), bf16) if name.endswith("norm.query_norm.scale") else (name, data, kind)
            for name, data, kind in tensors
        ]

    rewrite(file, change)
    with pytest.raises(WeightsError, match=r"transformer is not fully on cpu in torch\.bfloat16"):
        read_pipeline(settings_of("flux2-klein-4b-8bit", folder), "cpu")


def test_a_tensor_that_lacks_an_axis_is_a_sentence(settings_of: Make, copy_of: Any) -> None:
    """Some GGUF files of Z-Image hold (1, width) as (width), and diffusers takes that for another model's."""
    folder, file = copy_of("z-image-turbo-8bit")

    def change(tensors: Tensors) -> Tensors:
        return [(name, data[0] if name.endswith("pad_token") else data, kind) for name, data, kind in tensors]

    rewrite(file, change)
    with pytest.raises(WeightsError, match="pad_token expected shape"):
        read_pipeline(settings_of("z-image-turbo-8bit", folder), "cpu")


@pytest.mark.parametrize("preset", PACKED)
def test_a_lora_is_refused(preset: str, settings_of: Make) -> None:
    files = {**BLOCKS[preset]["weight_files"], "lora-style": ["style.safetensors"]}
    style = {"name": "style", "scale": 1.0, "fused": True}
    with pytest.raises(SettingsError, match=r"\.gguf cannot take a LoRA"):
        read_pipeline(settings_of(preset, loras=[style], weight_files=files), "cpu")


def test_a_missing_package_is_named(settings_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_start.pipeline, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"requirements: .*\.gguf needs the package gguf"):
        read_pipeline(settings_of(PACKED[0]), "cpu")


def test_a_class_that_cannot_be_one_file_is_refused(settings_of: Make) -> None:
    part = {"class_name": "T5EncoderModel", "file": "t5.gguf"}
    with pytest.raises(SettingsError, match="a T5EncoderModel is read from a folder"):
        read_pipeline(settings_of("pixart-sigma", components={"text_encoder": part}), "cpu")


# diffusers splits such a file at the width of the real model, whatever its config says: only there can it be tested.
FLUX = (
    (r"^time_text_embed\.timestep_embedder\.", "time_in."),
    (r"^time_text_embed\.text_embedder\.", "vector_in."),
    (r"^single_transformer_blocks\.(\d+)\.proj_out\.", r"single_blocks.\1.linear2."),
    (r"^single_transformer_blocks\.(\d+)\.norm\.linear\.", r"single_blocks.\1.modulation.lin."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_q\.(\w+)$", r"single_blocks.\1.linear1.\2#0"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_k\.(\w+)$", r"single_blocks.\1.linear1.\2#1"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_v\.(\w+)$", r"single_blocks.\1.linear1.\2#2"),
    (r"^single_transformer_blocks\.(\d+)\.proj_mlp\.(\w+)$", r"single_blocks.\1.linear1.\2#3"),
    (r"\.norm1\.linear\.", ".img_mod.lin."),
    (r"\.norm1_context\.linear\.", ".txt_mod.lin."),
    (r"\.ff\.net\.0\.proj\.", ".img_mlp.0."),
    (r"\.ff\.net\.2\.", ".img_mlp.2."),
    (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.0."),
    (r"\.ff_context\.net\.2\.", ".txt_mlp.2."),
)


def test_each_tensor_of_flux_is_found_in_the_layout_of_its_makers(settings_of: Make, tiny: Any, copy_of: Any) -> None:
    """At its real width, with one block of each kind: half a gigabyte of random bytes, of which nothing is computed."""
    folder, file = copy_of("flux-schnell-8bit")
    file.unlink()
    config = folder / "pipeline" / "transformer" / "config.json"
    wide = {**json.loads(config.read_text()), "attention_head_dim": 128, "num_attention_heads": 24}
    config.write_text(json.dumps(wide))
    with torch.device("meta"):
        flux = diffusers.FluxTransformer2DModel.from_config(wide)
    generator = np.random.default_rng(0)
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in flux.state_dict().items():
        if tensor.ndim == 2:
            rows, columns = tensor.shape
            shape = rows, columns // 32 * 34  # a block of 32 numbers, and the two bytes of its scale
            stored[name] = torch.from_numpy(generator.integers(256, size=shape, dtype=np.uint8))
        else:
            stored[name] = torch.rand(tensor.shape).bfloat16().float()
    q8, f32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32
    # FLUX.2 has the same names but for its feed-forward layers and modulations, which come first.
    layout = FACTS["flux2-klein-4b"].tiny["transformer"]["layout"]
    same = layout[[pattern for pattern, _ in layout].index(r"(_in)\.linear_1\.") :]
    tensors = tiny.in_layout((*FLUX, *same), stored)
    assert {"double_blocks.0.txt_attn.qkv.weight", "single_blocks.0.linear1.bias", "img_in.weight"} <= tensors.keys()
    write(
        file, [(name, tensor.numpy(), q8 if tensor.dtype == torch.uint8 else f32) for name, tensor in tensors.items()]
    )
    found = read_pipeline(settings_of("flux-schnell-8bit", folder), "cpu").transformer.state_dict()
    assert found.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(found[name], tensor if tensor.dtype == torch.uint8 else tensor.bfloat16()), name

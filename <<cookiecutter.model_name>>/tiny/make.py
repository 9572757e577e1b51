"""Make a tiny pipeline, laid out as the real repositories are, for a CPU: with random weights, or with the demo's."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel

PROJECT = Path(__file__).resolve().parent.parent
# A trained pipeline: it paints flat shapes as the prompt says.
DEMO = Path(__file__).resolve().parent / "demo"
# What the real repositories say of their parts, apart from sizes: by preset.
PUBLISHED = yaml.safe_load((Path(__file__).parent / "published_settings.yaml").read_text("utf-8"))
# What the real model_index.json names and load() leaves out, so that the tests prove that it does.
REAL_ONLY_COMPONENTS = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "pe": ["transformers", "Ministral3ForCausalLM"],
    "pe_tokenizer": ["transformers", "TokenizersBackend"],
}
Published = dict[str, Any]


def make(folder: Path, settings: dict[str, Any], preset: str = "", trained: bool = False) -> None:
    """Write what settings (model_metadata.pipeline in config.yaml) name: one folder for each cached repository.

    preset: whose real repositories it resembles. Left out, it is this project's, as the tags in config.yaml say.
    trained: with the weights of the demo, which are of one family.
    """
    torch.manual_seed(0)
    class_name = settings["class_name"]
    if class_name not in FAMILIES:
        raise ValueError(f"There is no tiny pipeline for {class_name}: add one to FAMILIES in {__file__}.")
    published = published_settings(class_name, preset)
    target = folder / "pipeline"
    target.mkdir(parents=True, exist_ok=True)
    if "vae" in settings["components"]:
        published = {**published, "vae": published.get("component_vae", published["vae"])}
    if trained:
        published = {**published, "scheduler": {**published["scheduler"], **_demo_prediction()}}
    parts = _demo(target) if trained else FAMILIES[class_name](target, published)
    scheduler = getattr(diffusers, published["scheduler"]["_class_name"]).from_config(published["scheduler"])
    absent = {name: None for name in REAL_ONLY_COMPONENTS if name in settings["load_kwargs"]}
    pipeline = getattr(diffusers, class_name)(
        **parts, scheduler=scheduler, **absent, **published.get("model_index", {})
    )
    dtypes = _stored_dtypes(published, settings)
    for name, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            module.to(dtypes.get(name, getattr(torch, settings["dtype"])))
    # The tokenizers are there already, in the files of the real repositories.
    tokenizers = {file: file.read_bytes() for file in target.glob("tokenizer*/*")}
    pipeline.save_pretrained(target, variant=settings["variant"], safe_serialization=True)
    for name in _sharded(settings["weight_files"]["pipeline"]):
        shutil.rmtree(target / name)
        module = pipeline.components[name]
        module.save_pretrained(target / name, max_shard_size=int(0.6 * module.get_memory_footprint()))
    for tokenizer in target.glob("tokenizer*"):
        shutil.rmtree(tokenizer)
        tokenizer.mkdir()
    for file, content in tokenizers.items():
        file.write_bytes(content)
    # Whole: save_pretrained leaves out what the installed version does not know.
    (target / "scheduler" / "scheduler_config.json").write_text(json.dumps(published["scheduler"], indent=2))
    index = json.loads((target / "model_index.json").read_text())
    index.update({name: REAL_ONLY_COMPONENTS[name] for name in absent})
    (target / "model_index.json").write_text(json.dumps(index, indent=2))
    for name, part in settings["components"].items():
        _move_component(folder, name, part, pipeline.components[name])
    for name in _left_out(settings):
        shutil.rmtree(target / name, ignore_errors=True)
    for lora in settings["loras"]:
        make_lora(folder, pipeline, lora["name"])


def published_settings(class_name: str, preset: str = "") -> Published:
    """Return those of the preset, or of this project's; where that is no preset of the family, those of its first."""
    config = yaml.safe_load((PROJECT / "config.yaml").read_text("utf-8"))
    names = [preset, *config["model_metadata"].get("tags", []), *PUBLISHED]
    return next(PUBLISHED[name] for name in names if name in PUBLISHED and PUBLISHED[name]["class_name"] == class_name)


def _demo(folder: Path) -> dict[str, Any]:
    """Return the trained parts, but for the scheduler. folder gets their tokenizers."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(DEMO, dtype=torch.float32, local_files_only=True)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(DEMO / name, folder / name, dirs_exist_ok=True)
    return {name: part for name, part in pipeline.components.items() if part is not None and name != "scheduler"}


def _demo_prediction() -> dict[str, Any]:
    """Return what of the scheduler's settings belongs to the trained weights. All else is as published."""
    return {
        "prediction_type": json.loads((DEMO / "scheduler" / "scheduler_config.json").read_text())["prediction_type"]
    }


def make_lora(folder: Path, pipeline: Any, lora: str) -> tuple[str, str, torch.Tensor]:
    """Write a LoRA of one layer. Returns its component, its layer, and what it adds to the weight at scale 1."""
    name = "unet" if "unet" in pipeline.components else "transformer"
    path, layer = next(
        (path, part) for path, part in pipeline.components[name].named_modules() if path.endswith("to_q")
    )
    down, up = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    (folder / f"lora-{lora}").mkdir(exist_ok=True)
    keys = {f"{name}.{path}.lora_A.weight": down, f"{name}.{path}.lora_B.weight": up}
    save_file(keys, folder / f"lora-{lora}" / "pytorch_lora_weights.safetensors")
    return name, path, up @ down


def _sharded(patterns: list[str]) -> set[str]:
    """Return the components whose weights are two files and an index in the real repository."""
    return {pattern.split("/")[0] for pattern in patterns if pattern.endswith("-of-00002.safetensors")}


def _stored_dtypes(published: Published, settings: dict[str, Any]) -> dict[str, torch.dtype]:
    """Return the dtypes of components whose weight files have another one than the preset."""
    stored = {name: getattr(torch, dtype) for name, dtype in published.get("stored", {}).items()}
    from_elsewhere = stored.pop("component_vae", None)
    return {**stored, "vae": from_elsewhere} if from_elsewhere and "vae" in settings["components"] else stored


def _left_out(settings: dict[str, Any]) -> list[str]:
    """Return the components that load() is told to leave out, and of which no file is fetched."""
    fetched = {pattern.split("/")[0] for pattern in settings["weight_files"]["pipeline"]}
    return [name for name, value in settings["load_kwargs"].items() if value is None and name not in fetched]


def _move_component(folder: Path, name: str, part: dict[str, Any], module: torch.nn.Module) -> None:
    """Take the component out of the pipeline's folder, as the patterns of config.yaml do."""
    kept = folder / "pipeline" / name
    if part["file"] is None:
        shutil.rmtree(kept)
        module.save_pretrained(folder / name, safe_serialization=True)
        return
    for file in kept.glob("*.safetensors"):
        file.unlink()
    path = folder / name / part["file"]
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = in_layout(LAYOUTS.get(type(module).__name__, ()), module.state_dict())
    if path.suffix == ".gguf":
        _save_gguf(tensors, path)
    else:
        save_file(tensors, path)


# How the makers of a model name what diffusers names otherwise, in files of one component: patterns, in this order.
# What ends in #0, #1, ... is a part of one tensor there, and what ends in #swapped has its halves the other way round.
Layout = tuple[tuple[str, str], ...]
# Those of FLUX.1 and FLUX.2, after the patterns of each.
FLUX_NAMES: Layout = (
    (r"(_in)\.linear_1\.", r"\1.in_layer."),
    (r"(_in)\.linear_2\.", r"\1.out_layer."),
    (r"^context_embedder\.", "txt_in."),
    (r"^x_embedder\.", "img_in."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^norm_out\.linear\.(\w+)$", r"final_layer.adaLN_modulation.1.\1#swapped"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"\.attn\.norm_added_q\.weight", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_added_k\.weight", ".txt_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
    (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
    (r"\.attn\.to_q\.(\w+)$", r".img_attn.qkv.\1#0"),
    (r"\.attn\.to_k\.(\w+)$", r".img_attn.qkv.\1#1"),
    (r"\.attn\.to_v\.(\w+)$", r".img_attn.qkv.\1#2"),
    (r"\.attn\.add_q_proj\.(\w+)$", r".txt_attn.qkv.\1#0"),
    (r"\.attn\.add_k_proj\.(\w+)$", r".txt_attn.qkv.\1#1"),
    (r"\.attn\.add_v_proj\.(\w+)$", r".txt_attn.qkv.\1#2"),
)
# FluxTransformer2DModel is not here: diffusers splits such a file at the width of the real model, whatever its config
# says. So its tiny file has the names of diffusers.
LAYOUTS: dict[str, Layout] = {
    "ZImageTransformer2DModel": (
        (r"^all_(x_embedder|final_layer)\.2-1\.", r"\1."),
        (r"\.norm_([qk])\.", r".\1_norm."),
        (r"\.to_out\.0\.", ".out."),
        (r"\.to_q\.(\w+)$", r".qkv.\1#0"),
        (r"\.to_k\.(\w+)$", r".qkv.\1#1"),
        (r"\.to_v\.(\w+)$", r".qkv.\1#2"),
    ),
    "Flux2Transformer2DModel": (
        (r"^time_guidance_embed\.timestep_embedder\.", "time_in."),
        (r"^time_guidance_embed\.guidance_embedder\.", "guidance_in."),
        (r"(_modulation\w*)\.linear\.", r"\1.lin."),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj\.", r"single_blocks.\1.linear1."),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_out\.", r"single_blocks.\1.linear2."),
        (r"\.ff\.linear_in\.", ".img_mlp.0."),
        (r"\.ff\.linear_out\.", ".img_mlp.2."),
        (r"\.ff_context\.linear_in\.", ".txt_mlp.0."),
        (r"\.ff_context\.linear_out\.", ".txt_mlp.2."),
        *FLUX_NAMES,
    ),
}


def in_layout(layout: Layout, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a component as the makers of the model name and join them."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in layout:
            name = re.sub(pattern, replacement, name)
        name, _, part = name.partition("#")
        parts.setdefault(name, {})[part] = tensor
    for found in parts.values():
        if "swapped" in found:
            found["1"], found["0"] = found.pop("swapped").chunk(2)
    return {name: torch.cat([found[part] for part in sorted(found)]) for name, found in parts.items()}


def _save_gguf(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write the matrices of linear layers in 8 bits (Q8_0), if their rows are whole blocks. The rest stays float32."""
    # Only in the requirements of projects that have such a file.
    import gguf

    writer = gguf.GGUFWriter(path, "tiny")
    for name, tensor in tensors.items():
        packed = name.endswith("weight") and tensor.ndim == 2 and tensor.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if packed else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _clip_tokenizer(folder: Path, published: Published) -> transformers.CLIPTokenizer:
    """One token per character, as vocab.json and merges.txt, as the real repositories hold them."""
    folder.mkdir(exist_ok=True)
    characters = [chr(code) for code in range(33, 127)]
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens = [*characters, *(c + "</w>" for c in characters), start, end]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
        "model_max_length": 77,
        **published.get(folder.name, {}),
    }
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return transformers.CLIPTokenizer.from_pretrained(folder)


def _t5_tokenizer(folder: Path) -> transformers.T5Tokenizer:
    """A sentencepiece model and no tokenizer.json: PixArt has no more, so what reads it must be installed."""
    import sentencepiece

    folder.mkdir(exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([chr(code) for code in range(33, 127)]),
        model_writer=(model := (folder / "spiece.model").open("wb")),
        vocab_size=98,
        model_type="char",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    model.close()
    settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "extra_ids": 100, "model_max_length": 512}))
    return transformers.T5Tokenizer.from_pretrained(folder)


# What the pipelines put around a prompt: as many tokens as in the real vocabulary, so that as much of a prompt is read.
# Qwen-Image's own words are 34 tokens with those around them: prompt_template_encode_start_idx of its pipeline.
QWEN_WORDS = (
    "<|im_start|>|<|im_end|>|system|user|assistant|Describe| the| image| by| detailing| color| shape| size| texture|"
    " quantity| text| spatial| relationships| of| objects| and| background"
)


def _qwen_tokenizer(folder: Path) -> transformers.Qwen2Tokenizer:
    """One token per byte, but for the words that the pipelines add."""
    vocabulary = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    words = re.findall(r"<\|\w+\|>|[^|]+", QWEN_WORDS)
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _gemma_tokenizer(folder: Path) -> transformers.GemmaTokenizer:
    """One token per character, with the space before it, as in most words of the real vocabulary."""
    characters = [chr(code) for code in range(33, 127)]
    special, octets = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], [f"<0x{octet:02X}>" for octet in range(256)]
    tokens = [*special, *octets, "▁", *characters, *(f"▁{character}" for character in characters)]
    tokenizer = transformers.GemmaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[("▁", character) for character in characters],
        add_bos_token=True,
        add_eos_token=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _clip_config(tokenizer: transformers.CLIPTokenizer, options: Published) -> transformers.CLIPTextConfig:
    # The published eos_token_id of 2 is no token of theirs: then the end is the highest token, as it is here.
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        **options,
    )


def _t5_encoder(tokenizer: transformers.T5Tokenizer, width: int, options: Published) -> transformers.T5EncoderModel:
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_ff=37, d_kv=8, num_heads=4, num_layers=2, **options
    )
    return transformers.T5EncoderModel(config)


def _qwen_config(tokenizer: transformers.Qwen2Tokenizer, layers: int, options: Published) -> transformers.Qwen3Config:
    return transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=4096,
        **options,
    )


def _vae(options: Published, class_name: str = "AutoencoderKL") -> torch.nn.Module:
    # Four levels: 8 pixels a latent, as in the real ones.
    return getattr(diffusers, class_name)(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        sample_size=64,
        **{"latent_channels": 4, **options},
    )


def _unet(published: Published, **sizes: Any) -> diffusers.UNet2DConditionModel:
    layers = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
    options = {name: _at_most_2(value) if name in layers else value for name, value in published["unet"].items()}
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        **{"layers_per_block": 1, **sizes, **options},
    )


def _at_most_2(layers: Any) -> Any:
    return [_at_most_2(each) for each in layers] if isinstance(layers, list) else min(layers, 2)


def _stable_diffusion(folder: Path, published: Published) -> dict[str, Any]:
    tokenizer = _clip_tokenizer(folder / "tokenizer", published)
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.CLIPTextModel(_clip_config(tokenizer, published["text_encoder"])),
        "vae": _vae(published["vae"]),
        "unet": _unet(published, cross_attention_dim=32),
    }


def _stable_diffusion_xl(folder: Path, published: Published) -> dict[str, Any]:
    tokenizer = _clip_tokenizer(folder / "tokenizer", published)
    tokenizer_2 = _clip_tokenizer(folder / "tokenizer_2", published)
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "text_encoder": transformers.CLIPTextModel(_clip_config(tokenizer, published["text_encoder"])),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(
            _clip_config(tokenizer_2, published["text_encoder_2"])
        ),
        "vae": _vae(published["vae"]),
        "unet": _unet(
            published,
            cross_attention_dim=64,
            attention_head_dim=(2, 2, 4),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        ),
    }


def _stable_diffusion_3(folder: Path, published: Published) -> dict[str, Any]:
    tokenizer = _clip_tokenizer(folder / "tokenizer", published)
    tokenizer_2 = _clip_tokenizer(folder / "tokenizer_2", published)
    tokenizer_3 = _t5_tokenizer(folder / "tokenizer_3")
    # Of its layers, some have two attentions, as published, and the last has not.
    options = {**published["transformer"], "dual_attention_layers": (0,)}
    if "dual_attention_layers" not in published["transformer"]:
        del options["dual_attention_layers"]
    latents = published["vae"]["latent_channels"]
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "tokenizer_3": tokenizer_3,
        "text_encoder": transformers.CLIPTextModelWithProjection(_clip_config(tokenizer, published["text_encoder"])),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(
            _clip_config(tokenizer_2, published["text_encoder_2"])
        ),
        "text_encoder_3": _t5_encoder(tokenizer_3, 64, published["text_encoder_3"]),
        "vae": _vae(published["vae"]),
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=32,
            in_channels=latents,
            out_channels=latents,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            pos_embed_max_size=96,
            **options,
        ),
    }


def _flux(folder: Path, published: Published) -> dict[str, Any]:
    tokenizer = _clip_tokenizer(folder / "tokenizer", published)
    tokenizer_2 = _t5_tokenizer(folder / "tokenizer_2")
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "text_encoder": transformers.CLIPTextModel(_clip_config(tokenizer, published["text_encoder"])),
        "text_encoder_2": _t5_encoder(tokenizer_2, 32, published["text_encoder_2"]),
        "vae": _vae(published["vae"]),
        "transformer": diffusers.FluxTransformer2DModel(
            in_channels=4 * published["vae"]["latent_channels"],
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            **published["transformer"],
        ),
    }


def _pixart_sigma(folder: Path, published: Published) -> dict[str, Any]:
    tokenizer = _t5_tokenizer(folder / "tokenizer")
    return {
        "tokenizer": tokenizer,
        "text_encoder": _t5_encoder(tokenizer, 32, published["text_encoder"]),
        "vae": _vae(published["vae"]),
        "transformer": diffusers.PixArtTransformer2DModel(
            sample_size=32,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=24,
            **published["transformer"],
        ),
    }


def _sana_sprint(folder: Path, published: Published) -> dict[str, Any]:
    tokenizer = _gemma_tokenizer(folder / "tokenizer")
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        **published["text_encoder"],
    )
    latents = published["vae"]["latent_channels"]
    # Six levels: 32 pixels a latent, as in the real one.
    channels = (8, 8, 8, 8, 8, latents)
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.Gemma2Model(config),
        "vae": diffusers.AutoencoderDC(
            attention_head_dim=4,
            encoder_block_out_channels=channels,
            decoder_block_out_channels=channels,
            encoder_layers_per_block=(1,) * len(channels),
            decoder_layers_per_block=(1,) * len(channels),
            **published["vae"],
        ),
        "transformer": diffusers.SanaTransformer2DModel(
            in_channels=latents,
            out_channels=latents,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            **published["transformer"],
        ),
    }


def _z_image(folder: Path, published: Published) -> dict[str, Any]:
    tokenizer = _qwen_tokenizer(folder / "tokenizer")
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=published["vae"]["latent_channels"],
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[2048, 256, 256],
        **published["transformer"],
    )
    # Made with torch.empty: it may hold NaN.
    with torch.no_grad():
        transformer.x_pad_token.fill_(1)
        transformer.cap_pad_token.fill_(1)
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.Qwen3Model(_qwen_config(tokenizer, 2, published["text_encoder"])),
        "vae": _vae(published["vae"]),
        "transformer": transformer,
    }


def _qwen_image(folder: Path, published: Published) -> dict[str, Any]:
    tokenizer = _qwen_tokenizer(folder / "tokenizer")
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1000000.0},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **published["text_encoder"])
    latents = published["vae"]["z_dim"]
    vae = diffusers.AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **published["vae"])
    # Otherwise its pictures are grey, and a JPEG of low quality is of one colour.
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(10)
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(config),
        "vae": vae,
        "transformer": diffusers.QwenImageTransformer2DModel(
            in_channels=4 * latents,
            out_channels=latents,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
            **published["transformer"],
        ),
    }


def _ernie_image(folder: Path, published: Published) -> dict[str, Any]:
    tokenizer = _qwen_tokenizer(folder / "tokenizer")
    text = {
        "model_type": "ministral3",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, **published["text_encoder"])
    transformer = diffusers.ErnieImageTransformer2DModel(
        in_channels=4 * published["vae"]["latent_channels"],
        out_channels=4 * published["vae"]["latent_channels"],
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
        **published["transformer"],
    )
    # Fresh, they are zero, and the picture would be the noise that it began with.
    for layer in (transformer.adaLN_modulation[-1], transformer.final_linear):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.Mistral3Model(config),
        "vae": _flux2_vae(published["vae"]),
        "transformer": transformer,
    }


def _flux2_vae(options: Published) -> torch.nn.Module:
    vae = _vae(options, "AutoencoderKLFlux2")
    # What training left there. Fresh, it would change nothing.
    torch.nn.init.normal_(vae.bn.running_mean, std=0.1)
    torch.nn.init.uniform_(vae.bn.running_var, 1, 3)
    return vae


def _flux2_klein(folder: Path, published: Published) -> dict[str, Any]:
    tokenizer = _qwen_tokenizer(folder / "tokenizer")
    return {
        "tokenizer": tokenizer,
        # The pipeline takes the hidden states of layers 9, 18 and 27.
        "text_encoder": transformers.Qwen3ForCausalLM(_qwen_config(tokenizer, 28, published["text_encoder"])),
        "vae": _flux2_vae(published["vae"]),
        "transformer": diffusers.Flux2Transformer2DModel(
            in_channels=4 * published["vae"]["latent_channels"],
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=256,
            axes_dims_rope=(4, 4, 4, 4),
            **published["transformer"],
        ),
    }


FAMILIES = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "FluxPipeline": _flux,
    "LatentConsistencyModelPipeline": _stable_diffusion,
    "PixArtSigmaPipeline": _pixart_sigma,
    "SanaSprintPipeline": _sana_sprint,
    "ZImagePipeline": _z_image,
    "QwenImagePipeline": _qwen_image,
    "Flux2KleinPipeline": _flux2_klein,
    "ErnieImagePipeline": _ernie_image,
}


if __name__ == "__main__":
    config = yaml.safe_load((PROJECT / "config.yaml").read_text("utf-8"))
    make(Path(sys.argv[1]), config["model_metadata"]["pipeline"], trained="--trained" in sys.argv)

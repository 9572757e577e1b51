"""Make a tiny pipeline with random weights, laid out as the real repositories are, for tests on a CPU."""

import json
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
# What the real model_index.json names and load() leaves out, so that the tests prove that it does.
REAL_ONLY_COMPONENTS = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
}
PATCHED_LATENTS = 4  # latent channels; FLUX and Qwen-Image pack 2 x 2 of them into one patch


def make(folder: Path, settings: dict[str, Any]) -> None:
    """Write what settings (model_metadata.pipeline in config.yaml) name: one folder for each cached repository."""
    torch.manual_seed(0)
    class_name = settings["class_name"]
    if class_name not in FAMILIES:
        raise ValueError(f"There is no tiny pipeline for {class_name}: add one to FAMILIES in {__file__}.")
    target = folder / "pipeline"
    target.mkdir(parents=True, exist_ok=True)
    absent = {name: None for name in REAL_ONLY_COMPONENTS if name in settings["load_kwargs"]}
    pipeline = getattr(diffusers, class_name)(**FAMILIES[class_name](target, settings), **absent)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.to(getattr(torch, settings["dtype"]))
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
    index = json.loads((target / "model_index.json").read_text())
    index.update({name: REAL_ONLY_COMPONENTS[name] for name in absent})
    (target / "model_index.json").write_text(json.dumps(index, indent=2))
    for name, part in settings["components"].items():
        _move_component(folder, name, part, pipeline.components[name])
    if settings["lora_repo_id"]:
        make_lora(folder, pipeline)


def make_lora(folder: Path, pipeline: Any) -> tuple[str, str, torch.Tensor]:
    """Write a LoRA of one layer. Returns its component, its layer, and what it adds to the weight at scale 1."""
    name = "unet" if "unet" in pipeline.components else "transformer"
    path, layer = next(
        (path, part) for path, part in pipeline.components[name].named_modules() if path.endswith("to_q")
    )
    down, up = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    (folder / "lora").mkdir(exist_ok=True)
    keys = {f"{name}.{path}.lora_A.weight": down, f"{name}.{path}.lora_B.weight": up}
    save_file(keys, folder / "lora" / "pytorch_lora_weights.safetensors")
    return name, path, up @ down


def _sharded(patterns: list[str]) -> set[str]:
    """Return the components whose weights are two files and an index in the real repository."""
    return {pattern.split("/")[0] for pattern in patterns if pattern.endswith("-of-00002.safetensors")}


def _move_component(folder: Path, name: str, part: dict[str, Any], module: torch.nn.Module) -> None:
    """Take the component out of the pipeline's folder, as the patterns of config.yaml do."""
    kept = folder / "pipeline" / name
    if part["file"] is None:
        shutil.rmtree(kept)
        module.save_pretrained(folder / name, safe_serialization=True)
        return
    for file in kept.glob("*.safetensors"):
        file.unlink()
    (folder / name).mkdir()
    save_file(module.state_dict(), folder / name / part["file"])


def _clip_tokenizer(folder: Path) -> transformers.CLIPTokenizer:
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


def _qwen_tokenizer(folder: Path) -> transformers.Qwen2Tokenizer:
    """One token per byte."""
    vocabulary = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocabulary, merges=[], additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _clip_config(tokenizer: transformers.CLIPTokenizer) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
    )


def _t5_encoder(tokenizer: transformers.T5Tokenizer, width: int) -> transformers.T5EncoderModel:
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_ff=37, d_kv=8, num_heads=4, num_layers=2, feed_forward_proj="relu"
    )
    return transformers.T5EncoderModel(config)


def _qwen_config(tokenizer: transformers.Qwen2Tokenizer, layers: int) -> transformers.Qwen3Config:
    return transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=4096,
    )


def _vae(latent_channels: int = 4, class_name: str = "AutoencoderKL", **options: Any) -> torch.nn.Module:
    # Four levels: 8 pixels a latent, as in the real ones. Without attention, full size takes seconds.
    return getattr(diffusers, class_name)(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
        latent_channels=latent_channels,
        norm_num_groups=2,
        sample_size=64,
        **options,
    )


def _unet(**options: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        **options,
    )


def _flow_matching() -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def _stable_diffusion(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    tokenizer = _clip_tokenizer(folder / "tokenizer")
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.CLIPTextModel(_clip_config(tokenizer)),
        "vae": _vae(),
        "scheduler": diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        "unet": _unet(cross_attention_dim=32),
    }


def _latent_consistency(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        **_stable_diffusion(folder, settings),
        "scheduler": diffusers.LCMScheduler(),
        "unet": _unet(cross_attention_dim=32, time_cond_proj_dim=32),
    }


def _stable_diffusion_xl(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    tokenizer = _clip_tokenizer(folder / "tokenizer")
    config = _clip_config(tokenizer)
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": _clip_tokenizer(folder / "tokenizer_2"),
        "text_encoder": transformers.CLIPTextModel(config),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(config),
        "vae": _vae(),
        "scheduler": diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        "unet": _unet(
            cross_attention_dim=64,
            attention_head_dim=(2, 2, 4),
            transformer_layers_per_block=(1, 1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        ),
    }


def _stable_diffusion_3(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    tokenizer = _clip_tokenizer(folder / "tokenizer")
    t5_tokenizer = _t5_tokenizer(folder / "tokenizer_3")
    config = _clip_config(tokenizer)
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": _clip_tokenizer(folder / "tokenizer_2"),
        "tokenizer_3": t5_tokenizer,
        "text_encoder": transformers.CLIPTextModelWithProjection(config),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(config),
        "text_encoder_3": _t5_encoder(t5_tokenizer, 64),
        "vae": _vae(shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": _flow_matching(),
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            pos_embed_max_size=96,
        ),
    }


def _flux(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    tokenizer = _clip_tokenizer(folder / "tokenizer")
    t5_tokenizer = _t5_tokenizer(folder / "tokenizer_2")
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": t5_tokenizer,
        "text_encoder": transformers.CLIPTextModel(_clip_config(tokenizer)),
        "text_encoder_2": _t5_encoder(t5_tokenizer, 32),
        "vae": _vae(PATCHED_LATENTS, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": _flow_matching(),
        "transformer": diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * PATCHED_LATENTS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=settings["defaults"]["guidance_scale"] > 0,
        ),
    }


def _pixart_sigma(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    tokenizer = _t5_tokenizer(folder / "tokenizer")
    return {
        "tokenizer": tokenizer,
        "text_encoder": _t5_encoder(tokenizer, 32),
        "vae": _vae(),
        "scheduler": diffusers.DPMSolverMultistepScheduler(),
        "transformer": diffusers.PixArtTransformer2DModel(
            sample_size=32,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=24,
        ),
    }


def _z_image(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    tokenizer = _qwen_tokenizer(folder / "tokenizer")
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[2048, 256, 256],
    )
    # Made with torch.empty: it may hold NaN.
    with torch.no_grad():
        transformer.x_pad_token.fill_(1)
        transformer.cap_pad_token.fill_(1)
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.Qwen3Model(_qwen_config(tokenizer, layers=2)),
        "vae": _vae(scaling_factor=0.3611, shift_factor=0.1159),
        "scheduler": _flow_matching(),
        "transformer": transformer,
    }


def _qwen_image(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
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
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(config),
        "vae": diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=PATCHED_LATENTS,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * PATCHED_LATENTS,
            latents_std=[1.0] * PATCHED_LATENTS,
        ),
        "scheduler": _flow_matching(),
        "transformer": diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=4 * PATCHED_LATENTS,
            out_channels=PATCHED_LATENTS,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
    }


def _flux2_klein(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    tokenizer = _qwen_tokenizer(folder / "tokenizer")
    return {
        "tokenizer": tokenizer,
        # The pipeline takes the hidden states of layers 9, 18 and 27.
        "text_encoder": transformers.Qwen3ForCausalLM(_qwen_config(tokenizer, layers=28)),
        "vae": _vae(PATCHED_LATENTS, "AutoencoderKLFlux2", use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": _flow_matching(),
        "transformer": diffusers.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=4 * PATCHED_LATENTS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=256,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        "is_distilled": True,
    }


FAMILIES = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "FluxPipeline": _flux,
    "LatentConsistencyModelPipeline": _latent_consistency,
    "PixArtSigmaPipeline": _pixart_sigma,
    "ZImagePipeline": _z_image,
    "QwenImagePipeline": _qwen_image,
    "Flux2KleinPipeline": _flux2_klein,
}


if __name__ == "__main__":
    config = yaml.safe_load((PROJECT / "config.yaml").read_text("utf-8"))
    make(Path(sys.argv[1]), config["model_metadata"]["pipeline"])

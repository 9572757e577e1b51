"""Make a tiny pipeline with random weights, laid out as the real repository is, for tests on a CPU."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

PROJECT = Path(__file__).resolve().parent.parent
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
# What the real model_index.json names and load() leaves out, so that the tests prove that it does.
REAL_ONLY_COMPONENTS = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
}


def make(folder: Path, settings: dict[str, Any]) -> None:
    """Write the pipeline that settings (model_metadata.pipeline in config.yaml) name to folder."""
    import diffusers

    torch.manual_seed(0)
    class_name = settings["class_name"]
    if class_name not in COMPONENTS:
        raise ValueError(f"There is no tiny pipeline for {class_name}: add one to COMPONENTS in {__file__}.")
    folder.mkdir(parents=True, exist_ok=True)
    components = COMPONENTS[class_name](folder)
    absent = {name: None for name in REAL_ONLY_COMPONENTS if name in settings["load_kwargs"]}
    pipeline = getattr(diffusers, class_name)(**components, **absent)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.to(getattr(torch, settings["dtype"]))
    pipeline.save_pretrained(folder, variant=settings["variant"], safe_serialization=True)
    for tokenizer in folder.glob("tokenizer*"):
        _write_tokenizer(tokenizer)
    index = json.loads((folder / "model_index.json").read_text())
    index.update({name: REAL_ONLY_COMPONENTS[name] for name in absent})
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def _write_tokenizer(folder: Path) -> CLIPTokenizer:
    """One token per character, as vocab.json and merges.txt, as the real repositories hold them."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    characters = [chr(code) for code in range(33, 127)]
    tokens = [*characters, *(c + "</w>" for c in characters), *SPECIAL_TOKENS]
    start, end = SPECIAL_TOKENS
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
    return CLIPTokenizer.from_pretrained(folder)


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
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


def _vae() -> AutoencoderKL:
    # Four levels: 8 pixels a latent, as in the real ones. Without attention, full size takes seconds.
    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
    )


def _stable_diffusion(folder: Path) -> dict[str, Any]:
    tokenizer = _write_tokenizer(folder / "tokenizer")
    return {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(_text_config(tokenizer)),
        "vae": _vae(),
        "scheduler": DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        "unet": UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(4, 4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            cross_attention_dim=32,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        ),
    }


def _stable_diffusion_xl(folder: Path) -> dict[str, Any]:
    tokenizer = _write_tokenizer(folder / "tokenizer")
    config = _text_config(tokenizer)
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": _write_tokenizer(folder / "tokenizer_2"),
        "text_encoder": CLIPTextModel(config),
        "text_encoder_2": CLIPTextModelWithProjection(config),
        "vae": _vae(),
        "scheduler": EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        "unet": UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(4, 4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            cross_attention_dim=64,
            attention_head_dim=(2, 2, 4),
            transformer_layers_per_block=(1, 1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        ),
    }


COMPONENTS = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
}


if __name__ == "__main__":
    config = yaml.safe_load((PROJECT / "config.yaml").read_text("utf-8"))
    make(Path(sys.argv[1]), config["model_metadata"]["pipeline"])

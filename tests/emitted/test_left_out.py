"""Why a model is in no preset: a test fails when diffusers no longer gives the reason that CHANGELOG.md tells."""

from typing import Any

import diffusers
import pytest
import torch


@pytest.fixture(scope="module")
def sana_sprint() -> Any:
    """A tiny one, without its text encoder."""
    torch.manual_seed(0)
    blocks = ("ResBlock", "EfficientViTBlock")
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    )
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=32,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=True,
    )
    pipeline = diffusers.SanaSprintPipeline(None, None, vae, transformer, diffusers.SCMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(pipeline: Any, **more: Any) -> Any:
    texts = {"prompt_embeds": torch.ones(1, 4, 8), "prompt_attention_mask": torch.ones(1, 4)}
    sizes = {"width": 64, "height": 64, "use_resolution_binning": False}
    return pipeline(**texts, **sizes, **more).images[0]


def test_sana_sprint_makes_two_steps_and_no_other_number(sana_sprint: Any) -> None:
    assert picture(sana_sprint, num_inference_steps=2).size == (64, 64)
    with pytest.raises(ValueError, match="num_inference_steps != 2"):
        picture(sana_sprint, num_inference_steps=4)


def test_sana_sprint_hides_that_memory_ran_out(sana_sprint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is told so asks for a smaller picture. This one would hear of a fault."""

    def decode(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sana_sprint.vae, "decode", decode)
    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(UnboundLocalError):
        picture(sana_sprint)

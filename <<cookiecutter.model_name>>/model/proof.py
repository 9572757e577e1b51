"""Proves that the pipeline which was put together can serve what config.yaml promises. Reads no weights."""

import inspect
from typing import Any

from model.settings import Settings, SettingsError
from model.weights import WeightsError


def check_steps(scheduler: Any, settings: Settings) -> None:
    """Raise SettingsError if limits allow steps that the scheduler refuses or spoils."""
    known = {name: scheduler.config.get(name) for name in inspect.signature(scheduler.__init__).parameters}
    # PNDM's Runge-Kutta steps are the first of four; one step alone stretches to shift_terminal by 0 / 0.
    least = 4 if known.get("skip_prk_steps") is False else 2 if known.get("shift_terminal") else 1
    most = known.get("original_inference_steps") or settings.limits.max_steps
    if settings.limits.min_steps < least or settings.limits.max_steps > most:
        raise SettingsError(f"config.yaml, limits: {type(scheduler).__name__} can do {least} to {most} steps.")


def check_placement(name: str, model: Any, dtype: Any, device: str) -> None:
    """Raise WeightsError unless every tensor of the model is on device, in dtype or kept in float32.

    A packed tensor of a GGUF counts as what its layer unpacks it to, and as None where no layer does.
    """
    import torch

    tensors = [*model.parameters(), *model.buffers()]
    # Some layers stay float32 in every dtype, such as T5's.
    dtypes = {
        getattr(layer, "compute_dtype", None) if hasattr(parameter, "quant_type") else parameter.dtype
        for layer in model.modules()
        for parameter in layer.parameters(recurse=False)
    }
    if {tensor.device.type for tensor in tensors} != {device} or not {dtype} <= dtypes <= {dtype, torch.float32}:
        raise WeightsError(f"{name} is not whole on {device} in {dtype}: report this to the maker of the template.")


def check_fit(pipeline: Any, settings: Settings) -> None:
    """Raise WeightsError if the UNet or transformer is made for another pipeline, such as one for inpainting."""
    name = "unet" if "unet" in pipeline.components else "transformer"
    takes = pipeline.components[name].config
    latents = pipeline.vae.config.get("latent_channels") or pipeline.vae.config.get("z_dim")
    # FLUX and Qwen-Image pack 2 x 2 latents into one.
    if takes.in_channels not in (latents, latents if name == "unet" else 4 * latents):
        raise WeightsError(f"{name} takes {takes.in_channels} channels and not {latents}: use a text-to-image model.")
    encoders = [part for key, part in pipeline.components.items() if key.startswith("text_encoder") and part]
    width = sum(encoder.config.hidden_size for encoder in encoders) if name == "unet" else 0
    if name == "unet" and takes.cross_attention_dim != width:
        raise WeightsError(
            f"unet reads texts of {takes.cross_attention_dim} numbers a token, and the text encoders write {width}: "
            "they are of different models."
        )
    # transformers 5 made CLIP's text model flat, and diffusers still looks inside it.
    if settings.call_kwargs.get("clip_skip") and len(encoders) == 1 and not hasattr(encoders[0], "text_model"):
        raise SettingsError("config.yaml, call_kwargs.clip_skip: this model cannot skip layers, so leave it out.")

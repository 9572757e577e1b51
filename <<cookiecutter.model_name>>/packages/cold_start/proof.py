"""Checks that the loaded pipeline can serve what config.yaml allows. Reads no weights."""

import inspect
from typing import Any

from cold_start.weights import WeightsError
from pipeline_settings import Settings, SettingsError


def check_steps(scheduler: Any, settings: Settings) -> None:
    """Raise SettingsError if limits allow numbers of steps that the scheduler refuses or breaks on."""
    known = {name: scheduler.config.get(name) for name in inspect.signature(scheduler.__init__).parameters}
    # PNDM's Runge-Kutta steps need four; with a single step, stretching to shift_terminal divides 0 by 0.
    least = 4 if known.get("skip_prk_steps") is False else 2 if known.get("shift_terminal") else 1
    most = known.get("original_inference_steps") or settings.limits.max_steps
    if settings.limits.min_steps < least or settings.limits.max_steps > most:
        raise SettingsError(f"config.yaml, limits: {type(scheduler).__name__} can do {least} to {most} steps.")


def check_placement(name: str, model: Any, dtype: Any, device: str) -> None:
    """Raise WeightsError unless every tensor is on device, in dtype or in float32.

    A packed GGUF tensor counts as the dtype that its layer unpacks it to, or as None if no layer does.
    """
    import torch

    tensors = [*model.parameters(), *model.buffers()]
    # Some layers always stay float32, such as T5's.
    dtypes = {
        getattr(layer, "compute_dtype", None) if hasattr(parameter, "quant_type") else parameter.dtype
        for layer in model.modules()
        for parameter in layer.parameters(recurse=False)
    }
    if {tensor.device.type for tensor in tensors} != {device} or not {dtype} <= dtypes <= {dtype, torch.float32}:
        raise WeightsError(f"{name} is not fully on {device} in {dtype}: report this as a bug of the template.")


def check_fit(pipeline: Any, settings: Settings) -> None:
    """Raise WeightsError if the UNet or transformer was made for another pipeline, such as inpainting."""
    name = "unet" if "unet" in pipeline.components else "transformer"
    model = pipeline.components[name]
    # Ignore keys in published configs that the class does not take.
    known = inspect.signature(type(model).__init__).parameters
    takes = {key: value for key, value in model.config.items() if key in known}
    latents = pipeline.vae.config.get("latent_channels") or pipeline.vae.config.get("z_dim")
    channels = takes["in_channels"]
    # FLUX and Qwen-Image pack 2 x 2 latents into one.
    if channels not in (latents, latents if name == "unet" else 4 * latents):
        raise WeightsError(f"{name} takes {channels} channels instead of {latents}: use one made for this pipeline.")
    texts = [part for key, part in pipeline.components.items() if key.startswith("text_encoder")]
    encoders = [part for part in texts if part]
    for key, widths in _text_widths(name, encoders).items():
        # A transformer with several encoders gets zeros for one that config.yaml leaves out.
        if takes.get(key) and takes[key] not in widths and (name == "unet" or None not in texts):
            raise WeightsError(
                f"{name} reads text embeddings of width {takes[key]} ({key}), but the text encoders produce "
                f"{' or '.join(map(str, sorted(widths)))}: use components of one model."
            )
    # transformers 5 flattened CLIP's text model, but diffusers still looks for its inner one.
    if settings.call_kwargs.get("clip_skip") and len(encoders) == 1 and not hasattr(encoders[0], "text_model"):
        raise SettingsError("config.yaml, call_kwargs.clip_skip: this model cannot skip layers: leave it out.")


def _text_widths(name: str, encoders: list[Any]) -> dict[str, set[int]]:
    """Return the allowed values of each config key that gives the width of text embeddings."""
    widths = [encoder.config.get_text_config().hidden_size for encoder in encoders]
    if name == "unet":
        return {"cross_attention_dim": {sum(widths)}}
    # FLUX.2 reads three layers of its single encoder; CLIP's encoders also give a pooled embedding.
    whole = [
        encoder.config.projection_dim if hasattr(encoder, "text_projection") else encoder.config.hidden_size
        for encoder in encoders
        if "clip" in encoder.config.model_type
    ]
    keys = ("joint_attention_dim", "caption_channels", "cap_feat_dim", "text_in_dim")
    return {"pooled_projection_dim": {sum(whole)}, **{key: {*widths, *(3 * width for width in widths)} for key in keys}}

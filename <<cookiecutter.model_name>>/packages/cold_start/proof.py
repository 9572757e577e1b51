"""Proves that the pipeline which was put together can serve what config.yaml promises. Reads no weights."""

import inspect
from typing import Any

from cold_start.weights import WeightsError
from pipeline_settings import Settings, SettingsError


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
    model = pipeline.components[name]
    # Published configs keep keys that the class does not take, so that mean nothing.
    known = inspect.signature(type(model).__init__).parameters
    takes = {key: value for key, value in model.config.items() if key in known}
    latents = pipeline.vae.config.get("latent_channels") or pipeline.vae.config.get("z_dim")
    # FLUX and Qwen-Image pack 2 x 2 latents into one.
    if takes["in_channels"] not in (latents, latents if name == "unet" else 4 * latents):
        raise WeightsError(
            f"{name} takes {takes['in_channels']} channels and not {latents}: use a text-to-image model."
        )
    texts = [part for key, part in pipeline.components.items() if key.startswith("text_encoder")]
    encoders = [part for part in texts if part]
    for key, widths in _text_widths(name, encoders).items():
        # A transformer that reads several encoders takes zeros for one that config.yaml leaves out.
        if takes.get(key) and takes[key] not in widths and (name == "unet" or None not in texts):
            raise WeightsError(
                f"{name} reads texts of {takes[key]} numbers ({key}), and the text encoders write "
                f"{' or '.join(map(str, sorted(widths)))}: they are of different models."
            )
    # transformers 5 made CLIP's text model flat, and diffusers still looks inside it.
    if settings.call_kwargs.get("clip_skip") and len(encoders) == 1 and not hasattr(encoders[0], "text_model"):
        raise SettingsError("config.yaml, call_kwargs.clip_skip: this model cannot skip layers, so leave it out.")


def _text_widths(name: str, encoders: list[Any]) -> dict[str, set[int]]:
    """Return what each key of a UNet's or transformer's config that says how wide a text is may be."""
    widths = [encoder.config.get_text_config().hidden_size for encoder in encoders]
    if name == "unet":
        return {"cross_attention_dim": {sum(widths)}}
    # FLUX.2 reads three layers of its one encoder, and CLIP's encoders give a text as a whole too.
    whole = [
        encoder.config.projection_dim if hasattr(encoder, "text_projection") else encoder.config.hidden_size
        for encoder in encoders
        if "clip" in encoder.config.model_type
    ]
    keys = ("joint_attention_dim", "caption_channels", "cap_feat_dim", "text_in_dim")
    return {"pooled_projection_dim": {sum(whole)}, **{key: {*widths, *(3 * width for width in widths)} for key in keys}}

"""What a request runs on: the pipeline for it, on the weights that load() read, with the LoRAs that it chooses."""

import copy
import inspect
from typing import Any

from pipeline_settings import ImageToImage, Inpaint


def denoiser(pipeline: Any) -> Any:
    """Return its UNet or transformer."""
    return pipeline.components.get("unet") or pipeline.transformer


def on_same_weights(pipeline: Any, other: ImageToImage | Inpaint | None) -> Any:
    """Return the other pipeline on the very same weights: no second copy in memory. None: the first itself."""
    if other is None:
        return pipeline
    import diffusers

    class_ = getattr(diffusers, other.class_name)
    # Not from_pipe: it casts all components to one dtype, also the layers that must stay float32.
    known = inspect.signature(class_.__init__).parameters
    made = class_(**{name: part for name, part in {**pipeline.config, **pipeline.components}.items() if name in known})
    made.set_progress_bar_config(disable=True)
    if isinstance(other, Inpaint) and not other.adds_shift:
        # The first pipeline adds it by itself. A shallow copy: its tensors are those of the first.
        vae, made.vae = pipeline.vae, copy.copy(pipeline.vae)
        made.vae.decode = lambda latents, **more: vae.decode(latents + vae.config.shift_factor, **more)
    return made


def choose_loras(pipeline: Any, scales: dict[str, float]) -> None:
    """Give the LoRAs of these folders an effect, each at its scale, and all others none."""
    for part in pipeline.components.values():
        for layer in part.modules() if hasattr(part, "modules") else ():
            if not hasattr(layer, "set_scale"):
                continue
            # Asked of each layer: that is slow with many LoRAs, and a fault may have ended the last choice halfway.
            if layer.active_adapters != [*scales]:
                layer.set_adapter([*scales], inference_mode=True)
            for folder, scale in scales.items():
                layer.set_scale(folder, scale)

"""The pipelines for requests, which share the weights that load() read, and the choice of LoRAs."""

import contextlib
import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_files import Pair, prove
from pipeline_settings import ImageToImage, Inpaint, Settings


def denoiser(pipeline: Any) -> Any:
    """Return the pipeline's UNet or transformer."""
    return pipeline.components.get("unet") or pipeline.transformer


def on_same_weights(pipeline: Any, other: ImageToImage | Inpaint | None) -> Any:
    """Return the other pipeline on the same weights, without a copy in memory. None: the pipeline itself."""
    if other is None:
        return pipeline
    import diffusers

    class_ = getattr(diffusers, other.class_name)
    # Not from_pipe, which casts all components to one dtype, including layers that must stay float32.
    known = inspect.signature(class_.__init__).parameters
    made = class_(**{name: part for name, part in {**pipeline.config, **pipeline.components}.items() if name in known})
    made.set_progress_bar_config(disable=True)
    if isinstance(other, Inpaint) and not other.adds_shift:
        # The first pipeline adds it by itself. A shallow copy: its tensors are those of the first.
        vae, made.vae = pipeline.vae, copy.copy(pipeline.vae)
        made.vae.decode = lambda latents, **more: vae.decode(latents + vae.config.shift_factor, **more)
    return made


class Loras:
    """Those that requests choose: read for the first, and beside the weights for one request, as Guard runs them."""

    def __init__(self, pipeline: Any, settings: Settings) -> None:
        """Prove that each file fits the pipeline. Raises WeightsError."""
        folder = Path(settings.weights_dir)
        self._read = {lora.name: prove(pipeline, folder, lora) for lora in settings.loras if not lora.fused}
        self._most = settings.limits.loras_in_memory
        # The one that was used last stands last.
        self._ready = OrderedDict[str, list[Pair]]()

    @contextlib.contextmanager
    def chosen(self, scales: dict[str, float]) -> Iterator[None]:
        """Give the LoRAs of these names an effect in this block, each at its scale."""
        beside: dict[Any, list[Any]] = {}
        for name in scales.keys() & self._ready.keys():
            self._ready.move_to_end(name)
        # In one order, so that the sum is the same to the last bit.
        for name in sorted(scales):
            if name not in self._ready:
                while len(self._ready) >= self._most:
                    self._ready.popitem(last=False)
                self._ready[name] = self._read[name]()
            for layer, *pair, factor in self._ready[name]:
                beside.setdefault(layer, []).append((*pair, factor * scales[name]))
        try:
            for layer, pairs in beside.items():
                # On the instance, and no hook: compiled code takes no notice of one that comes later.
                layer.forward = _forward(layer, pairs)
            yield
        finally:
            for layer in beside:
                layer.__dict__.pop("forward", None)


def _forward(layer: Any, pairs: list[Any]) -> Callable[[Any], Any]:
    """Return the layer's own forward with what the pairs add to it."""
    from torch.nn import functional

    plain, kernel = layer.forward, hasattr(layer, "kernel_size")
    apply = functional.conv2d if kernel else functional.linear
    how = (layer.stride, layer.padding, layer.dilation) if kernel else ()

    def forward(x: Any) -> Any:
        result = plain(x)
        for down, up, bias, scale in pairs:
            result = result + apply(apply(x, down, None, *how), up, bias) * scale
        return result

    return forward

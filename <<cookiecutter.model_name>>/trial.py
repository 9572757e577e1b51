"""Tries config.yaml on tiny random weights: calls each pipeline once, and checks that each setting has an effect."""

import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cold_start.pipeline import read_pipeline
from cold_start.weights import WeightsError
from model import arguments, images
from model.pipelines import on_same_weights
from model.request import request_model
from pipeline_settings import Settings, SettingsError, one_line

# The kinds of requests, as parts of a sentence.
TEXT, IMAGE, MASK = "without an image", "with an image", "with a mask"


def problems(block: dict[str, Any]) -> list[str]:
    """Return a sentence for each failure of load() or a request; without failures, for each setting without effect.

    block: model_metadata.pipeline of config.yaml. Raises ValueError if its class_name has no tiny weights.
    """
    from tiny import make as tiny

    # Leave out LoRAs, which fit only the real weights, and what needs a GPU or time. Eight steps show every setting.
    plain: dict[str, Any] = {"loras": [], "safety": None, "cpu_dtype": "float32"}
    plain |= {"warm_up": False, "warm_up_sizes": [], "compile": None}
    steps = max(block["limits"]["min_steps"], min(block["defaults"]["num_inference_steps"], 8))
    plain["defaults"] = {**block["defaults"], "num_inference_steps": steps}
    with tempfile.TemporaryDirectory() as weights:
        try:
            settings = Settings.model_validate({**block, **plain, "weights_dir": weights})
            tiny.make(Path(weights), {**block, **plain})
            trial = Trial(settings)
        except (SettingsError, WeightsError) as error:
            return [str(error)]
        return trial.problems()


class Trial:
    """Loads the pipelines of settings from existing weights. Raises SettingsError or WeightsError like load()."""

    def __init__(self, settings: Any) -> None:
        self.settings, self.pipelines = settings, _pipelines(settings)
        self.bodies: dict[str, dict[str, Any]] = {} if settings.needs_image else {TEXT: {}}
        if settings.image_to_image or settings.reference_images:
            self.bodies[IMAGE] = {"image": images.plain("orange")}
        if settings.inpaint:
            self.bodies[MASK] = {"image": images.plain("orange"), "mask": images.plain("white")}
        self.made: dict[str, Any] = {}

    def problems(self) -> list[str]:
        """Return a sentence for each failing pipeline; if there is none, for each setting without effect."""
        return list(self.failures()) or [*self.call_kwargs_without_effect(), *self.scheduler_without_effect()]

    def failures(self) -> Iterator[str]:
        """Yield a sentence for each pipeline whose call fails."""
        for what, body in self.bodies.items():
            try:
                self.made[what] = self._call(body)
            except Exception as error:
                yield f"config.yaml, {self._culprit(body)}: every request {what} would fail. {one_line(error, 300)}."

    def _culprit(self, body: dict[str, Any]) -> str:
        """Return the key of call_kwargs that makes the call fail."""
        for name in self.settings.call_kwargs:
            try:
                self._call(body, _without(self.settings, "call_kwargs", name))
            except Exception:
                continue
            return f"call_kwargs.{name}"
        return "model_metadata.pipeline"

    def call_kwargs_without_effect(self) -> Iterator[str]:
        """Yield a sentence for each argument without effect, unless it is off or the pipeline's default."""
        for name, value in self.settings.call_kwargs.items():
            for what, body in self.bodies.items():
                pipeline = self.pipelines[self._asked(body, self.settings).other]
                known = inspect.signature(type(pipeline).__call__).parameters
                if value in (None, False, known[name].default):
                    continue
                if self._same(what, body, _without(self.settings, "call_kwargs", name)):
                    yield f"config.yaml, call_kwargs.{name}: it has no effect on requests {what}: remove it."

    def scheduler_without_effect(self) -> Iterator[str]:
        """Yield a sentence for each scheduler setting without effect on any image."""
        for name, value in self.settings.scheduler.items():
            if name == "class_name" or value in (None, False):
                continue
            pipelines = _pipelines(_without(self.settings, "scheduler", name))
            if pipelines[None].scheduler.config.get(name) == value:
                # The repository has the same value, so compare with another one.
                if isinstance(value, bool | str):
                    continue
                changed = {**self.settings.scheduler, name: value * 2}
                pipelines = _pipelines(self.settings.model_copy(update={"scheduler": changed}))
            if all(self._same(what, body, self.settings, pipelines) for what, body in self.bodies.items()):
                yield f"config.yaml, scheduler.{name}: it has no effect on this model: remove it."

    def _same(self, what: str, body: dict[str, Any], settings: Any, pipelines: Any = None) -> bool:
        try:
            return bool((self._call(body, settings, pipelines) == self.made[what]).all())
        except Exception:  # the call fails, or the image has another size: an effect
            return False

    def _asked(self, body: dict[str, Any], settings: Any) -> Any:
        small = dict.fromkeys(("width", "height"), settings.limits.min_size)
        return arguments.of_request(settings, request_model(settings)(**{"prompt": "a red house", **small, **body}))

    def _call(self, body: dict[str, Any], settings: Any = None, pipelines: Any = None) -> Any:
        """Return the image as floats, [1, height, width, 3]."""
        settings = settings or self.settings
        asked = self._asked(body, settings)
        own = arguments.of_image(settings, 0, asked.arguments["num_inference_steps"], lambda count: None)
        return (pipelines or self.pipelines)[asked.other](**asked.arguments, **own, output_type="np").images


def _pipelines(settings: Any) -> dict[Any, Any]:
    first = read_pipeline(settings, "cpu")
    return {other: on_same_weights(first, other) for other in (None, *settings.others)}


def _without(settings: Any, key: str, name: str) -> Any:
    left = {other: value for other, value in getattr(settings, key).items() if other != name}
    return settings.model_copy(update={key: left})

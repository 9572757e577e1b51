"""Checks the names in config.yaml against diffusers. Needs no weights."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline_settings import ImageToImage, Inpaint, Settings, SettingsError, did_you_mean

NEEDED = {"vae", "scheduler", "unet", "transformer", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"}
NEEDED |= {"processor"}


def check_pipelines(settings: Settings) -> None:
    """Raise SettingsError unless diffusers has each pipeline, with the arguments of config.yaml and requests."""
    import diffusers

    class_ = named(diffusers, settings.class_name, "class_name")
    known = inspect.signature(class_.__call__).parameters
    for key in ("guidance_parameter", "step_callback", "area_parameter"):
        if name := getattr(settings, key):
            check_name(name, known, key)
    if settings.negative_prompt:
        check_name("negative_prompt", known, "negative_prompt")
    for name, value in settings.call_kwargs.items():
        check_argument(name, value, known, "call_kwargs")
    parts = inspect.signature(class_.__init__).parameters
    check_name(settings.prompt_tokens.tokenizer, parts, "prompt_tokens.tokenizer")
    for name in settings.load_kwargs:
        check_name(name, parts, "load_kwargs")
    _check_left_out(settings.load_kwargs)
    for other in settings.others:
        _check_other("inpaint" if isinstance(other, Inpaint) else "image_to_image", other, settings)


def named(library: Any, name: str, key: str) -> Any:
    """Return the library's class that config.yaml names under key. Raises SettingsError."""
    if not hasattr(library, name):  # dir() of diffusers is slow
        check_name(name, dir(library), key)
    return getattr(library, name)


def check_name(name: str, known: Iterable[str], key: str) -> None:
    """Raise SettingsError for an unknown name."""
    if name not in known:
        raise SettingsError(f"config.yaml, {key}: there is no {name}{did_you_mean(name, list(known))}")


def check_argument(name: str, value: Any, known: Mapping[str, inspect.Parameter], key: str) -> None:
    """Raise SettingsError unless name is known and value has the type of its default: even "no" would be true."""
    check_name(name, known, f"{key}.{name}")
    default = known[name].default
    kinds = {float if type(each) is int else type(each) for each in (value, default)}
    if len(kinds) > 1 and value is not None and default not in (None, inspect.Parameter.empty):
        example = str(default).lower() if isinstance(default, bool) else default
        raise SettingsError(f"config.yaml, {key}.{name}: use a value such as {example}.")


def _check_left_out(load_kwargs: dict[str, Any]) -> None:
    left_out = {name for name, value in load_kwargs.items() if value is None}
    # Stable Diffusion 3 works without its third text encoder, and then without that tokenizer.
    for name in sorted(left_out & (NEEDED if "text_encoder_3" in left_out else NEEDED | {"tokenizer_3"})):
        raise SettingsError(f"config.yaml, load_kwargs: no image can be generated without {name}: do not leave it out.")


def _check_other(key: str, other: ImageToImage | Inpaint, settings: Settings) -> None:
    import diffusers

    known = inspect.signature(named(diffusers, other.class_name, f"{key}.class_name").__call__).parameters
    check_name("mask_image" if key == "inpaint" else "strength", known, f"{key}.class_name, {other.class_name}")
    if isinstance(other, ImageToImage) and other.takes_size != ("width" in known):
        right = str("width" in known).lower()
        raise SettingsError(f"config.yaml, image_to_image.takes_size: use {right} for {other.class_name}.")
    if settings.area_parameter and (isinstance(other, Inpaint) or other.takes_size):
        check_name(settings.area_parameter, known, f"{key}.class_name, {other.class_name}")
    for name in (name for name in settings.call_kwargs if name not in known):
        instead = f"remove it, or set {key} to null"
        raise SettingsError(f"config.yaml, call_kwargs: {other.class_name} takes no {name}: {instead}.")

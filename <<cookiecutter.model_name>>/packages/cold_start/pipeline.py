"""Puts the pipeline together out of the cached weights. Which parts it has is said in config.yaml."""

import copy
import functools
import inspect
import json
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cold_start import lora, proof
from cold_start.weights import WeightsError
from pipeline_settings import ImageToImage, Inpaint, Settings, SettingsError, did_you_mean, one_line

NEEDED = {"vae", "scheduler", "unet", "transformer", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"}


def read_pipeline(settings: Settings, device: str) -> Any:
    """Return the pipeline on device. Raises SettingsError or WeightsError unless a fitting file holds each tensor."""
    import diffusers
    import torch
    import transformers

    # Their warnings repeat what they cut off a prompt, and that belongs in no log.
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    # SANA's pipelines warn when it runs out while they decode, and go on without a picture. It must be an error.
    warnings.filterwarnings("error", ".*out of memory", UserWarning)
    pipeline_class = _named(diffusers, settings.class_name, "class_name")
    known = inspect.signature(pipeline_class.__call__).parameters
    _check(settings.guidance_parameter, known, "guidance_parameter")
    _check(settings.step_callback, known, "step_callback")
    for name in (*settings.call_kwargs, *(["negative_prompt"] if settings.negative_prompt else [])):
        _check(name, known, name if name == "negative_prompt" else "call_kwargs")
    parts = inspect.signature(pipeline_class.__init__).parameters
    _check(settings.prompt_tokens.tokenizer, parts, "prompt_tokens.tokenizer")
    for name in settings.load_kwargs:
        _check(name, parts, "load_kwargs")
    _check_left_out(settings.load_kwargs)
    for key, other in (("image_to_image", settings.image_to_image), ("inpaint", settings.inpaint)):
        if other:
            _check_other(key, other)
    packed = [part.file for part in settings.components.values() if part.file and part.file.endswith(".gguf")]
    if settings.loras and packed:
        raise SettingsError(f"config.yaml, loras: {packed[0]} cannot take a LoRA, so use [].")
    folder = Path(settings.weights_dir)
    dtype = getattr(torch, settings.cpu_dtype if device == "cpu" else settings.dtype)
    index = json.loads((folder / "pipeline" / "model_index.json").read_text("utf-8"))
    models = {name: _read_model(name, index[name], settings, dtype, device) for name in _models(index, settings)}
    try:
        # What is left for it are tokenizers and the scheduler.
        pipeline = pipeline_class.from_pretrained(
            folder / "pipeline", local_files_only=True, **models, **settings.load_kwargs
        )
    except (OSError, ValueError, TypeError, ImportError, AttributeError) as error:
        raise WeightsError(f"The pipeline in {folder} cannot be put together: {one_line(error)}") from error
    if settings.scheduler:
        pipeline.scheduler = _scheduler(settings.scheduler, pipeline.scheduler)
    proof.check_steps(pipeline.scheduler, settings)
    proof.check_fit(pipeline, settings)
    lora.add(pipeline, folder, settings.loras)
    for name, model in models.items():
        proof.check_placement(name, model, dtype, device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def denoiser(pipeline: Any) -> Any:
    """Return its UNet or transformer."""
    return pipeline.components.get("unet") or pipeline.transformer


@functools.lru_cache(maxsize=3)
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


def _named(library: Any, name: str, key: str) -> Any:
    """Return the class of the library that config.yaml names under key. Raises SettingsError."""
    _check(name, dir(library), key)
    return getattr(library, name)


def _check(name: str, known: Iterable[str], key: str) -> None:
    if name not in known:
        raise SettingsError(f"config.yaml, {key}: there is no {name}{did_you_mean(name, list(known))}.")


def _check_left_out(load_kwargs: dict[str, Any]) -> None:
    left_out = {name for name, value in load_kwargs.items() if value is None}
    # Stable Diffusion 3 can do without its third text encoder, and then without its tokenizer.
    for name in sorted(left_out & (NEEDED if "text_encoder_3" in left_out else NEEDED | {"tokenizer_3"})):
        raise SettingsError(f"config.yaml, load_kwargs: no picture can be made without {name}, so do not leave it out.")


def _check_other(key: str, other: ImageToImage | Inpaint) -> None:
    import diffusers

    known = inspect.signature(_named(diffusers, other.class_name, f"{key}.class_name").__call__).parameters
    _check("strength" if key == "image_to_image" else "mask_image", known, f"{key}.class_name, {other.class_name}")
    if isinstance(other, ImageToImage) and other.takes_size != ("width" in known):
        right = str("width" in known).lower()
        raise SettingsError(f"config.yaml, image_to_image.takes_size: use {right} for {other.class_name}.")


def _models(index: dict[str, Any], settings: Settings) -> list[str]:
    """Return which entries of model_index.json are models, in the order in which they are read."""
    folder = Path(settings.weights_dir) / "pipeline"
    return [
        name
        for name in index
        if name in settings.components
        or (name not in settings.load_kwargs and (folder / name / "config.json").is_file())
    ]


def _read_model(name: str, entry: list[str], settings: Settings, dtype: Any, device: str) -> Any:
    import diffusers
    import transformers
    from safetensors import SafetensorError

    part, pipeline = settings.components.get(name), Path(settings.weights_dir) / "pipeline"
    folder = pipeline.parent / name if part else pipeline / name
    library = transformers if entry[0] == "transformers" else diffusers
    if not part and entry[0] not in ("diffusers", "transformers"):
        raise SettingsError(f"config.yaml, load_kwargs: {name} cannot be served, so leave it out with {name}: null.")
    options = {"dtype": dtype, "local_files_only": True}
    class_ = _named(library, part.class_name if part else entry[1], f"components.{name}")
    if part and part.file and not hasattr(class_, "from_single_file"):
        raise SettingsError(
            f"config.yaml, components.{name}: a {class_.__name__} is read from a folder: use file: null."
        )
    if part and part.file and part.file.endswith(".gguf"):
        if not find_spec("gguf"):
            raise SettingsError(f"config.yaml, requirements: {part.file} needs the package gguf: add it.")
        # Its tensors stay as they are, and each layer unpacks its own for each step.
        options["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    try:
        if part and part.file:
            # device, as it takes no notice of device_map.
            return class_.from_single_file(
                str(folder / part.file), config=str(pipeline), subfolder=name, device=device, **options
            )
        options |= {"variant": settings.variant if any(folder.glob(f"*.{settings.variant}*")) else None}
        model, report = class_.from_pretrained(
            folder, use_safetensors=True, device_map=device, output_loading_info=True, **options
        )
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
        # A tensor that no file holds: torch cannot move it, and from_single_file cannot find it.
        missing = isinstance(error, NotImplementedError | LookupError)
        raise _unfit(name, folder, "no file holds a tensor of it" if missing else one_line(error)) from error
    if report["missing_keys"]:
        # transformers fills it with random numbers, other ones on each replica.
        raise _unfit(name, folder, f"no file holds its tensor {min(report['missing_keys'])}")
    return model


def _unfit(name: str, folder: Path, why: str) -> WeightsError:
    return WeightsError(
        f"{name} cannot be read from {folder}: {why}. The files are corrupt, not whole, or those of another model: "
        "check patterns and commit in config.yaml."
    )


def _scheduler(wanted: dict[str, Any], scheduler: Any) -> Any:
    import diffusers
    import torch

    class_ = _named(diffusers, wanted.get("class_name", type(scheduler).__name__), "scheduler.class_name")
    changes = {name: value for name, value in wanted.items() if name != "class_name"}
    known = inspect.signature(class_.__init__).parameters
    for name, value in changes.items():
        _check(name, known, f"scheduler.{name}")
        default = known[name].default
        # Of text every word is true, "no" and "false" among them.
        if default is not None and isinstance(default, bool) != isinstance(value, bool):
            raise SettingsError(f"config.yaml, scheduler.{name}: use a value such as {str(default).lower()}.")
    try:
        made = class_.from_config(scheduler.config, **changes)
        trial = class_.from_config(made.config)
        if not trial.config.get("use_dynamic_shifting"):  # which only the pipeline can tell
            trial.set_timesteps(4)
            sample = torch.zeros(1, 1, 4, 4)
            trial.step(sample, trial.timesteps[0], sample)
    # It raises whatever its formulas run into, ZeroDivisionError among them.
    except Exception as error:
        raise SettingsError(f"config.yaml, scheduler: {one_line(error)}.") from error
    # Only pipelines whose schedulers scale no input, those of flow models, set the sigmas themselves.
    optional = {"sigmas"} if hasattr(scheduler, "scale_model_input") else set()
    if not _abilities(scheduler) - optional <= _abilities(made):
        raise SettingsError(f"config.yaml, scheduler: a {class_.__name__} does not fit this pipeline.")
    return made


def _abilities(scheduler: Any) -> set[str]:
    """Return which of those things a scheduler can do that pipelines ask of it."""
    arguments = inspect.signature(scheduler.set_timesteps).parameters
    found = {name for name in ("sigmas", "original_inference_steps") if name in arguments}
    methods = ("scale_model_input", "init_noise_sigma", "add_noise", "scale_noise")
    return found | {name for name in methods if hasattr(scheduler, name)}

"""Loads the pipeline from the cached weights, as configured in config.yaml."""

import inspect
import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cold_start import proof
from cold_start.signatures import check_argument, check_pipelines, named
from cold_start.weights import WeightsError
from lora_files import fuse
from pipeline_settings import Settings, SettingsError, one_line


def read_pipeline(settings: Settings, device: str) -> Any:
    """Return the pipeline on device. Raises SettingsError or WeightsError unless a file has each tensor."""
    import torch

    _quiet()
    check_pipelines(settings)
    _check_packed(settings)
    folder = Path(settings.weights_dir)
    dtype = getattr(torch, settings.dtype_on(device))
    models = _read_models(settings, dtype, device)
    pipeline = _put_together(folder / "pipeline", settings, models)
    if settings.scheduler:
        pipeline.scheduler = _scheduler(pipeline.scheduler, settings.scheduler)
    proof.check_steps(pipeline.scheduler, settings)
    proof.check_fit(pipeline, settings)
    for lora in settings.loras:
        if lora.fused:
            fuse(pipeline, folder, lora)
    for name, model in models.items():
        proof.check_placement(name, model, dtype, device)
    return pipeline


def _quiet() -> None:
    import diffusers
    import transformers

    # Their warnings quote the part of a prompt that they cut off, which does not belong in a log.
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    # SANA's pipelines only warn when memory runs out while decoding, and then have no image: make it an error.
    warnings.filterwarnings("error", ".*out of memory", UserWarning)


def _check_packed(settings: Settings) -> None:
    packed = [part.file for part in settings.components.values() if part.file and part.file.endswith(".gguf")]
    if settings.loras and packed:
        raise SettingsError(f"config.yaml, loras: {packed[0]} cannot take a LoRA, so use [].")
    if packed and not find_spec("gguf"):
        raise SettingsError(f"config.yaml, requirements: {packed[0]} needs the package gguf: add it.")


def _put_together(folder: Path, settings: Settings, models: dict[str, Any]) -> Any:
    import diffusers

    class_ = getattr(diffusers, settings.class_name)
    parts = {**models, **settings.load_kwargs}
    try:
        if "processor" in inspect.signature(class_.__init__).parameters.keys() - parts.keys():
            parts["processor"] = _processor(folder / "processor")
            parts["text_encoder"].register_forward_pre_hook(_say_what_is_an_image, with_kwargs=True)
        # It loads only the tokenizers and the scheduler.
        pipeline = class_.from_pretrained(folder, local_files_only=True, **parts)
    except (OSError, ValueError, TypeError, ImportError, AttributeError) as error:
        raise WeightsError(f"The pipeline in {folder.parent} cannot be put together: {one_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _processor(folder: Path) -> Any:
    """Return the processor of Qwen2-VL in a folder, for images alone: for videos it needs torchvision."""
    import transformers

    # transformers takes its parts from the signature.
    class ForImages(transformers.Qwen2VLProcessor):  # type: ignore[misc]
        def __init__(self, image_processor: Any, tokenizer: Any) -> None:
            super().__init__(image_processor, tokenizer)

    # By class, as transformers would choose by what is installed.
    classes = (transformers.Qwen2VLImageProcessorPil, transformers.Qwen2Tokenizer)
    return ForImages(*(class_.from_pretrained(folder, local_files_only=True) for class_ in classes))


def _say_what_is_an_image(encoder: Any, rest: Any, given: dict[str, Any]) -> Any:
    # Not told by the pipeline, the encoder would read an image's rows as one long line, and no error would say so:
    # https://github.com/huggingface/diffusers/issues/14194
    return rest, {**given, "mm_token_type_ids": (given["input_ids"] == encoder.config.image_token_id).int()}


def _read_models(settings: Settings, dtype: Any, device: str) -> dict[str, Any]:
    """Return the models that model_index.json names, read in its order."""
    folder = Path(settings.weights_dir) / "pipeline"
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    return {
        name: _read_model(name, entry, settings, dtype, device)
        for name, entry in index.items()
        if name in settings.components
        or (name not in settings.load_kwargs and (folder / name / "config.json").is_file())
    }


def _read_model(name: str, entry: list[str], settings: Settings, dtype: Any, device: str) -> Any:
    import diffusers
    import transformers

    part, pipeline = settings.components.get(name), Path(settings.weights_dir) / "pipeline"
    folder = pipeline.parent / name if part else pipeline / name
    library = transformers if entry[0] == "transformers" else diffusers
    if not part and entry[0] not in ("diffusers", "transformers"):
        raise SettingsError(f"config.yaml, load_kwargs: {name} cannot be served, so leave it out with {name}: null.")
    options = {"dtype": dtype}
    class_ = named(library, part.class_name if part else entry[1], f"components.{name}")
    if part and part.file and not hasattr(class_, "from_single_file"):
        kind = class_.__name__
        raise SettingsError(f"config.yaml, components.{name}: a {kind} is read from a folder: use file: null.")
    if part and part.file and part.file.endswith(".gguf"):
        # The tensors stay packed, and each layer unpacks its own in each step.
        options["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    if part and part.file:
        # device, as from_single_file ignores device_map.
        config = {"config": str(pipeline), "subfolder": name, "device": device}
        return read_weights(name, class_, folder / part.file, **config, **options)
    return read_weights(name, class_, folder, settings.variant, device_map=device, **options)


def read_weights(name: str, class_: Any, path: Path, variant: str | None = None, **options: Any) -> Any:
    """Return the model in a folder, or in a file. Raises WeightsError unless it has every tensor."""
    from safetensors import SafetensorError

    single = path.suffix in (".safetensors", ".gguf")
    folder = path.parent if single else path
    try:
        if single:
            return class_.from_single_file(str(path), local_files_only=True, **options)
        options |= {"variant": variant if any(folder.glob(f"*.{variant}*")) else None, "local_files_only": True}
        model, report = class_.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
        # A tensor in no file: torch cannot move it, and from_single_file cannot find it.
        missing = isinstance(error, NotImplementedError | LookupError)
        raise _unfit(name, folder, "no file has one of its tensors" if missing else one_line(error)) from error
    if report["missing_keys"]:
        # transformers would fill it with random numbers, different on each replica.
        raise _unfit(name, folder, f"no file has its tensor {min(report['missing_keys'])}")
    return model


def _unfit(name: str, folder: Path, why: str) -> WeightsError:
    return WeightsError(
        f"{name} cannot be read from {folder}: {why}. The files are corrupt, incomplete, or from another model: "
        "check patterns and commit in config.yaml."
    )


def _scheduler(scheduler: Any, wanted: dict[str, Any]) -> Any:
    import diffusers
    import torch

    class_ = named(diffusers, wanted.get("class_name", type(scheduler).__name__), "scheduler.class_name")
    changes = {name: value for name, value in wanted.items() if name != "class_name"}
    known = inspect.signature(class_.__init__).parameters
    for name, value in changes.items():
        check_argument(name, value, known, "scheduler")
    try:
        made = class_.from_config(scheduler.config, **changes)
        trial = class_.from_config(made.config)
        if not trial.config.get("use_dynamic_shifting"):  # which depends on the pipeline
            trial.set_timesteps(4)
            sample = torch.zeros(1, 1, 4, 4)
            trial.step(sample, trial.timesteps[0], sample)
    # A scheduler's formulas raise many types, such as ZeroDivisionError.
    except Exception as error:
        raise SettingsError(f"config.yaml, scheduler: {one_line(error)}.") from error
    # Only pipelines of flow models, whose schedulers do not scale inputs, set the sigmas themselves.
    optional = {"sigmas"} if hasattr(scheduler, "scale_model_input") else set()
    if not _abilities(scheduler) - optional <= _abilities(made):
        raise SettingsError(f"config.yaml, scheduler: a {class_.__name__} does not fit this pipeline.")
    return made


def _abilities(scheduler: Any) -> set[str]:
    """Return which of the features that pipelines need a scheduler has."""
    arguments = inspect.signature(scheduler.set_timesteps).parameters
    found = {name for name in ("sigmas", "original_inference_steps") if name in arguments}
    methods = ("scale_model_input", "init_noise_sigma", "add_noise", "scale_noise")
    return found | {name for name in methods if hasattr(scheduler, name)}

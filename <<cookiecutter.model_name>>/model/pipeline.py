"""Puts the pipeline together out of the cached weights. Which parts it has is said in config.yaml."""

from pathlib import Path
from typing import Any

from model.weights import WeightsError


def read_pipeline(settings: dict[str, Any]) -> Any:
    """Return the pipeline on the GPU, or on the CPU where there is none. settings: see config.yaml.

    Raises WeightsError if the files lack a tensor.
    """
    import diffusers
    import torch

    folder = Path(settings["weights_dir"])
    cuda = torch.cuda.is_available()
    options = {
        "dtype": getattr(torch, settings["dtype" if cuda else "cpu_dtype"]),
        "device_map": "cuda" if cuda else "cpu",
        "local_files_only": True,
    }
    try:
        pipeline = getattr(diffusers, settings["class_name"]).from_pretrained(
            folder / "pipeline",
            variant=settings["variant"],
            use_safetensors=True,
            **options,
            **settings["load_kwargs"],
            **{name: _read_component(folder, name, part, options) for name, part in settings["components"].items()},
        )
    except NotImplementedError as error:
        # A tensor that no file holds is left without data, and torch refuses to move it.
        raise WeightsError(
            f"The weight files in {folder} lack a tensor that the pipeline needs: they are corrupt, or those of "
            "another model."
        ) from error
    if settings["scheduler_kwargs"]:
        scheduler = pipeline.scheduler
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, **settings["scheduler_kwargs"])
    if settings["lora_repo_id"]:
        _fuse_lora(pipeline, folder / "lora", settings["lora_scale"])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image_to_image(pipeline: Any, class_name: str) -> Any:
    """Return a pipeline of class_name on the very same weights: no second copy in memory."""
    import diffusers

    # Without dtype, from_pipe makes everything float32.
    other = getattr(diffusers, class_name).from_pipe(pipeline, dtype=pipeline.dtype)
    other.set_progress_bar_config(disable=True)
    return other


def _read_component(folder: Path, name: str, part: dict[str, Any], options: dict[str, Any]) -> Any:
    import diffusers

    component = getattr(diffusers, part["class_name"])
    if part["file"] is None:
        return component.from_pretrained(folder / name, use_safetensors=True, **options)
    return component.from_single_file(
        str(folder / name / part["file"]), config=str(folder / "pipeline"), subfolder=name, **options
    )


def _fuse_lora(pipeline: Any, folder: Path, scale: float) -> None:
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"lora_repo_id is set, and a {type(pipeline).__name__} cannot take a LoRA: leave it empty.")
    (file,) = folder.glob("*.safetensors")
    pipeline.load_lora_weights(folder, weight_name=file.name, local_files_only=True)
    pipeline.fuse_lora(lora_scale=scale)
    # The weights hold it now: what is left of it would only cost memory.
    pipeline.unload_lora_weights()

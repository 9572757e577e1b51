"""The keys of model_metadata.pipeline in config.yaml, documented and checked."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

BLOCK = "model_metadata.pipeline"
# Each running request holds a thread, and the server needs some itself.
MAX_CONCURRENCY = 8
OURS = {"prompt", "image", "strength", "num_inference_steps", "width", "height", "generator", "output_type"}
OURS |= {"mask_image", "return_dict", "num_images_per_prompt", "self"}
Name = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Dtype = Literal["float16", "bfloat16", "float32"]
Size = Annotated[list[Positive], Field(min_length=2, max_length=2)]


class SettingsError(ValueError):
    """config.yaml is wrong: one sentence with the key and what to use."""


class Strict(BaseModel):
    # No unknown keys, and no numbers in strings.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Component(Strict):
    class_name: Name = Field(description="Class in the library that model_index.json names.")
    file: Name | None = Field(description="Single safetensors or GGUF file; config.json is in the pipeline's folder.")


class ImageToImage(Strict):
    class_name: Name = Field(description="The pipeline in diffusers. It shares the weights of the first.")
    takes_size: bool = Field(description="false: the pipeline takes width and height from the image.")


class Lora(Strict):
    name: str = Field(pattern="^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64, description="Name in requests: pixel-art.")
    scale: float = Field(description="Strength: in every image if fused, otherwise the default of requests.")
    fused: bool = Field(description="true: in the weights, for every request. false: for requests that choose it.")

    @property
    def folder(self) -> str:
        return f"lora-{self.name}"


class Inpaint(Strict):
    class_name: Name = Field(description="The pipeline in diffusers. It shares the weights of the first.")
    adds_shift: bool = Field(description="false: it decodes without the VAE's shift_factor, which is added here.")
    max_pixels: Positive | None = Field(description="Most pixels that it paints; larger images are scaled. null: any.")


class ReferenceImages(Strict):
    required: bool = Field(description="true: each request needs one.")
    count: Positive = Field(description="Most images per request.")
    max_pixels: Positive = Field(description="Larger images are scaled down to it.")
    min_side: Positive = Field(description="Smaller images are scaled up to it.")
    max_ratio: float = Field(ge=1, description="Largest ratio of the long side to the short one.")


class PromptTokens(Strict):
    tokenizer: Name = Field(description="Tokenizer of the text encoder that reads the most.")
    count: Positive = Field(description="Tokens of a prompt that it reads, without those that the pipeline adds.")


class Defaults(Strict):
    num_inference_steps: Positive
    guidance_scale: float = Field(ge=0)
    width: Positive
    height: Positive
    strength: float = Field(gt=0, le=1)


class Limits(Strict):
    prompt_characters: Positive = Field(description="Per text; `warnings` report what the model did not read.")
    min_steps: Positive = Field(description="Fewest steps that the scheduler can do.")
    max_steps: Positive
    max_steps_per_strength: Positive | None = Field(description="With an image: at most this x strength. null: none.")
    guidance_scale: float = Field(ge=0)
    min_size: Positive
    max_size: Positive
    max_pixels: Positive = Field(description="Of width x height. The GPU must hold it: see `make check`.")
    size_multiple: Positive
    num_images: Positive
    loras: Positive = Field(description="In one request.")
    loras_in_memory: Positive = Field(description="Beyond that, the least recently used is dropped.")
    lora_scale: float = Field(gt=0, description="Largest absolute scale; slider LoRAs also use negative values.")
    image_bytes: Positive = Field(description="Total of a request's files, before base64.")
    image_pixels: Positive = Field(description="Total of a request's images. A JPEG may have four times as many.")


class Settings(Strict):
    class_name: Name = Field(description="The pipeline in diffusers.")
    image_to_image: ImageToImage | None = Field(description="null: the family cannot start from an image.")
    inpaint: Inpaint | None = Field(description="null: the family cannot use a mask.")
    reference_images: ReferenceImages | None = Field(description="Images beside the prompt. null: image is the start.")
    weights_dir: Name = Field(description="Holds one folder for each name in weight_files.")
    weight_files: dict[str, list[Name]] = Field(description="Required files by folder. `pipeline` is the pipeline's.")
    components: dict[str, Component] = Field(description="Components with their own folder in weights_dir.")
    dtype: Dtype = Field(description="dtype on a GPU.")
    cpu_dtype: Dtype = Field(description="dtype without a GPU, where half precision takes minutes per step.")
    warm_up: bool = Field(description="true: load() ends with an image, so that no request waits for kernels.")
    warm_up_sizes: list[Size] = Field(description="[width, height] of each warm-up image. []: the default size.")
    compile: Literal["regional"] | None = Field(description="torch.compile for repeated blocks: docs/tuning.md.")
    png_compress_level: int = Field(ge=0, le=9, description="1 is quickest, 9 smallest, 0 does not compress.")
    embed_metadata: bool = Field(description="true: files hold their prompt and settings, and the mark of AI images.")
    check_hashes: bool = Field(description="true: load() reads each byte of model_cache, a second for 1.8 GB.")
    variant: Name | None = Field(description="fp16 where the files are named *.fp16.safetensors; null: plain names.")
    load_kwargs: dict[str, Any] = Field(description="More for from_pretrained(). null leaves a component out.")
    scheduler: dict[str, Any] = Field(description="Settings to change; class_name in place of the repository's.")
    call_kwargs: dict[str, Any] = Field(description="More arguments of each call of the pipeline.")
    guidance_parameter: Name = Field(description="What the pipeline calls the guidance_scale of a request.")
    area_parameter: Name | None = Field(description="What it calls width x height. null: it needs only the sides.")
    step_callback: Literal["callback_on_step_end", "callback"] = Field(description="What it calls after each step.")
    negative_prompt: bool = Field(description="false: it runs without guidance, so it cannot use one.")
    prompt_tokens: PromptTokens = Field(description="How much of a prompt the model reads.")
    safety: Name | None = Field(description="Folder with safety_checker/ and feature_extractor/. null: no checker.")
    loras: list[Lora] = Field(description="Each is one safetensors file, cached in the folder lora-NAME.")
    defaults: Defaults = Field(description="Values of fields that a request leaves out.")
    limits: Limits = Field(description="Bounds of requests. Others get a 400, or a 413 if they are too large.")

    @property
    def others(self) -> list[ImageToImage | Inpaint]:
        return [other for other in (self.image_to_image, self.inpaint) if other]

    def dtype_on(self, device: str) -> str:
        return self.cpu_dtype if device == "cpu" else self.dtype

    @property
    def needs_image(self) -> bool:
        return self.reference_images is not None and self.reference_images.required

    @property
    def lora_names(self) -> list[str]:
        return [lora.name for lora in self.loras if not lora.fused]

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        limits = self.limits
        bounds = {
            "num_inference_steps": (limits.min_steps, limits.max_steps),
            "guidance_scale": (0, limits.guidance_scale),
            "width": (limits.min_size, limits.max_size),
            "height": (limits.min_size, limits.max_size),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self.defaults, name)
            if not low <= value <= high:
                raise ValueError(f"defaults.{name} is {value}, and limits allow {low} to {high}: change one of them")
            if low == limits.min_size and value % limits.size_multiple:
                raise ValueError(f"defaults.{name} is {value}: use a multiple of limits.size_multiple")
        if self.image_to_image and int(limits.max_steps * self.defaults.strength) < 1:
            raise ValueError(f"defaults.strength is {self.defaults.strength}: too little for limits.max_steps")
        if self.image_to_image and self.reference_images:
            raise ValueError("image_to_image and reference_images exclude each other: set one of them to null")
        ours = {*OURS, self.guidance_parameter, self.area_parameter, self.step_callback}
        for taken in ours & self.call_kwargs.keys():
            raise ValueError(f"call_kwargs has {taken}, which requests or model/ set: remove it")
        folders = [lora.folder for lora in self.loras]
        if len(set(folders)) < len(folders):
            raise ValueError("loras holds a name twice: each needs one of its own")
        if limits.loras_in_memory < limits.loras:
            raise ValueError(f"limits.loras_in_memory is less than limits.loras, {limits.loras}: change one of them")
        for lora in self.loras:
            if not lora.fused and abs(lora.scale) > limits.lora_scale:
                raise ValueError(f"the scale of {lora.name} is {lora.scale}, beyond limits.lora_scale: change one")
        for name in ("pipeline", *self.components, *folders, *filter(None, [self.safety])):
            if name not in self.weight_files:
                raise ValueError(f"weight_files lacks {name}: list the files that are cached for it")
        least, most, multiple = limits.min_size, limits.max_size, limits.size_multiple
        for size in self.warm_up_sizes:
            if not all(least <= pixels <= most and pixels % multiple == 0 for pixels in size):
                raise ValueError(f"warm_up_sizes holds {size}: use {least} to {most}, and multiples of {multiple}")
        sizes = [[self.defaults.width, self.defaults.height], [most, least], *self.warm_up_sizes]
        if any(width * height > limits.max_pixels for width, height in sizes):
            raise ValueError("limits.max_pixels is less than that of defaults, warm_up_sizes, or max_size x min_size")
        if (self.compile or self.warm_up_sizes) and not self.warm_up:
            raise ValueError("compile and warm_up_sizes have no effect without warm_up: set it to true")
        return self


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        for place, (key, _) in enumerate(node.value):
            if key.value in [before.value for before, _ in node.value[:place]]:  # the last would count, in silence
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def read_settings(config: Path) -> Settings:
    """Return the checked block of config.yaml. Raises SettingsError with the first mistake."""
    try:
        content = yaml.load(config.read_text("utf-8"), _Loader)
        block = content["model_metadata"]["pipeline"]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it contains a character that YAML does not allow"
        raise SettingsError(f"config.yaml{where}: {problem}.") from None
    except UnicodeDecodeError:
        raise SettingsError("config.yaml holds bytes that are no UTF-8: save it as UTF-8.") from None
    except (KeyError, TypeError):
        raise SettingsError(f"config.yaml lacks the block {BLOCK}: generate the project again.") from None
    runtime = content.get("runtime") or {}
    if not isinstance(runtime, dict):
        raise SettingsError("config.yaml, runtime: use keys such as predict_concurrency: 1.")
    concurrency = runtime.get("predict_concurrency", 1)
    if concurrency not in range(1, MAX_CONCURRENCY + 1):
        raise SettingsError(f"config.yaml, runtime.predict_concurrency: use 1 to {MAX_CONCURRENCY}.")
    try:
        settings = Settings.model_validate(block)
    except ValidationError as error:
        # Report an unknown key first: it is often a misspelling of a missing one.
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise SettingsError(_sentence(faults[0])) from None
    if settings.check_hashes and content.get("weights"):
        raise SettingsError(f"config.yaml, {BLOCK}.check_hashes: weights has no hashes: use false.")
    return settings


def _sentence(error: Any) -> str:
    *place, key = error["loc"] or (BLOCK,)
    message = error["msg"].removeprefix("Value error, ") + "."
    if error["type"] == "extra_forbidden":
        known = [name for model in Strict.__subclasses__() for name in model.model_fields]
        message = f"there is no such key{did_you_mean(key, known)}"
    return f"config.yaml, {'.'.join(map(str, (*place, key)))}: {message[0].lower()}{message[1:]}"


def one_line(error: Exception, most: int = 1000) -> str:
    """Return a library's message, truncated, for use in a sentence."""
    return " ".join(str(error).split())[:most].rstrip(".")


def did_you_mean(name: str, known: list[str]) -> str:
    """Return the end of a sentence about an unknown name, with its punctuation."""
    import difflib

    close = difflib.get_close_matches(str(name), known, 1)
    return f", did you mean {close[0]}?" if close else "."

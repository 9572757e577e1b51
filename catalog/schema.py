"""The keys of presets and families. `python -m catalog` reads the YAML files with it.

A preset is `presets/NAME.yaml`. It starts from its family (`family: NAME`) or from another preset (`like: NAME`), and
lists what differs. Mappings are merged key by key; other values, each component of `published`, and the `files` of a
repository are replaced.
A family is `families/NAME.yaml`, and can start from another one (`like: NAME`). The defaults are here.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
# Only these patterns mean the same in both of Baseten's deliveries: * matches / in model_cache, but not in weights.
Pattern = Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)*(/\*)?$")]
Requirement = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+==[0-9][\w.]*$")]
Init = tuple[Literal["constant_", "normal_", "uniform_"], *tuple[float, ...]]
Settings = dict[str, Any]
# How the classes of components end that have no weights.
READ_FROM_FILES = ("Tokenizer", "Processor")


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Repo(Part):
    """A pinned repository on Hugging Face. Its key in `repos` names the folder that it is downloaded to."""

    repo_id: str = Field(description="owner/name")
    revision: Commit = Field(description="Commit. `python -m catalog.refresh --write` updates it to the newest.")
    allow_patterns: list[Pattern] = Field(description="Files to download: exact names, or FOLDER/* for a whole folder.")
    component: str | None = Field(None, description="Class of the component in this repository. Not for `pipeline`.")
    file: str | None = Field(
        None, description="Single file of the component, in its original layout: .safetensors or .gguf."
    )
    scale: float | None = Field(None, description="Scale of a fused LoRA. The repository is named lora-NAME.")
    fine_tune_patterns: list[Pattern] | None = Field(
        None, description="Files of a fine-tune that replace this component. Without it, the preset takes no fine-tune."
    )
    time_per_image: str | None = Field(None, description="Published slowdown from unpacking a GGUF file.")
    unverified: str | None = Field(None, description="What could not be confirmed, and the source used instead.")
    files: dict[str, int | None] = Field(
        description="All files of the repository at that commit, with their bytes as listed by the Hub; null: unknown."
    )


class ImageToImage(Part):
    class_name: str = Field(description="The pipeline of diffusers.")
    takes_size: bool = Field(description="Whether its call takes width and height.")


class Inpaint(Part):
    class_name: str = Field(description="The pipeline of diffusers.")
    adds_shift: bool = Field(description="Whether it adds the VAE's shift to the latents of the masked image.")
    max_pixels: int | None = Field(description="Number of pixels that larger images are scaled down to.")


class References(Part):
    required: bool = Field(False, description="Whether the pipeline fails without one, as its text encoder reads them.")
    count: int = Field(description="Maximum number of images per request.")
    max_pixels: int = Field(description="Number of pixels that the pipeline scales larger images down to.")
    min_side: int = Field(description="Minimum length of a side, in pixels.")
    max_ratio: float = Field(description="Maximum ratio of the long side to the short one.")


class PromptTokens(Part):
    tokenizer: str = Field(description="The tokenizer that reads the most of a prompt.")
    count: int = Field(description="Number of tokens that it reads, without special tokens.")


class Memory(Part):
    """GB on the GPU (1e9 bytes) as benchmarks/memory.py predicts it: fixed + per_megapixel x width x height / 1e6."""

    fixed: float = Field(description="Weights, CUDA's context, and a reserve for the error of the prediction.")
    per_megapixel: float
    per_lora: float = Field(0, description="Each LoRA to choose from, of rank 64 on every linear layer. 0: takes none.")
    predicted: float = Field(description="The peak of an image of the default size, without context and reserve.")
    published: float | None = Field(None, description="The same, as somebody measured it.")

    def needed(self, pixels: int) -> float:
        return self.fixed + self.per_megapixel * pixels / 1e6


class Shared(Part):
    """Keys that a family can set for all its presets, or a preset for itself."""

    pipeline: str = Field(description="Pipeline class of diffusers.")
    tested: str = Field(description="The family's hardest preset, for tests that run only one per family.")
    alike: bool = Field(
        False,
        description="Whether its pipelines copy another family's: then only `make test-all` and `test-preset` test it.",
    )
    lora: bool = Field(True, description="Whether the class can load LoRAs.")
    demo: bool = Field(False, description="Whether the demo's weights fit, because the pipeline is shaped like SDXL.")

    size: int = Field(description="Default width and height, in pixels.")
    max_size: int = Field(description="Maximum width and height, in pixels.")
    size_multiple: int = Field(description="Width and height must be multiples of it.")
    min_steps: int = 1
    max_steps: int = 100
    max_steps_per_strength: int | None = Field(None, description="With an image: maximum of steps / strength.")
    max_guidance_scale: float = Field(20.0, description="0: the model has no guidance.")
    guidance_parameter: str = Field("guidance_scale", description="Its name in the pipeline's call.")
    area_parameter: str | None = Field(
        None, description="Its name for width x height, if without it the pipeline makes an image of another size."
    )
    negative_prompt: bool = Field(False, description="Whether it has an effect at the preset's guidance.")
    strength: float = Field(0.6, description="Default strength for requests with an image.")

    dtype: Literal["float16", "bfloat16", "float32"] = Field(description="dtype on a GPU.")
    variant: str | None = Field(None, description="Of weight files: model.VARIANT.safetensors; null: plain names.")
    image_to_image: ImageToImage | None = None
    inpaint: Inpaint | None = None
    reference_images: References | None = None
    load_kwargs: Settings = Field({}, description="Arguments of from_pretrained(). null leaves a component out.")
    call_kwargs: Settings = Field({}, description="Arguments of the pipeline's call.")
    scheduler: Settings = Field({}, description="Changed settings of the scheduler; class_name: another class.")
    step_callback: Literal["callback_on_step_end", "callback"] = "callback_on_step_end"
    prompt_tokens: PromptTokens
    requirements: list[Requirement] = Field([], description="Additional packages, pinned.")

    accelerator: str = Field(description="Default accelerator: catalog.cheapest() says which it is.")

    published: dict[str, Settings] = Field(
        {},
        description="Settings in the repository's config files, without sizes: by component, `scheduler` and "
        "`model_index`. `component_vae`: the VAE from another repository. `stored`: dtypes of files that differ from "
        "`dtype`.",
    )
    left_out: dict[str, tuple[str, str]] = Field(
        {}, description="Library and class of components in model_index.json that load_kwargs leaves out."
    )
    full_size: dict[str, Settings] = Field(
        description="The sizes of each component, beside `published`, or its name in full_size.yaml. `file`: a config "
        "in benchmarks/configs. `unpacked`: what is left in 16 bits in a .gguf file. `make bench-memory` needs them."
    )
    tiny: dict[str, Settings] = Field(
        description="How the tests make each component, in this order, in addition to `published`: `class`; sizes; "
        "`init`: tensors that differ between a fresh and a trained model; `layout`: names in the original single file."
    )


class Preset(Shared):
    family: str
    title: str = Field(description="Name to show.")
    note: str = Field("", description="Shown after title, size and steps in the prompt.")
    num_inference_steps: int
    guidance_scale: float
    download_gb: float = Field(description="Size of the download, in 1e9 bytes.")
    weights_gb: float = Field(description="Size of the weights on the GPU, in `dtype`.")
    gated: bool = Field(False, description="Whether the pipeline's repository needs a token.")
    license: str
    license_notice: str = Field(pattern=r"\.$", description="One or more sentences: is commercial use allowed?")
    repos: dict[str, Repo] = Field(description="`pipeline` first, then components, then LoRAs (lora-NAME).")
    source: str = Field(description="Where `published` was read, and which parts were not confirmed.")
    # These two are in no preset's file.
    memory: Memory | None = Field(None, description="From memory.yaml, which `make bench-memory` writes.")
    max_pixels: int = Field(
        0, description="Of width x height: max_size squared, or less if the accelerator holds no more."
    )

    @model_validator(mode="after")
    def check(self) -> "Preset":
        if next(iter(self.repos), None) != "pipeline":
            raise ValueError("repos: the first is not pipeline")
        if self.size % self.size_multiple or self.max_size % self.size_multiple:
            raise ValueError(f"size, max_size: not a multiple of {self.size_multiple}")
        models = {name for name, part in self.tiny.items() if not part["class"].endswith(READ_FROM_FILES)}
        if models != set(self.full_size):
            raise ValueError(f"full_size: give the sizes of {', '.join(sorted(models))}, and of nothing else")
        for name, repo in self.repos.items():
            kind = {"pipeline": (False, False)}.get(name, (False, True) if name.startswith("lora-") else (True, False))
            if (repo.component is not None, repo.scale is not None) != kind:
                raise ValueError(f"repos.{name}: a component needs component, a LoRA scale, and pipeline neither")
            if (repo.time_per_image is not None) != (repo.file or "").endswith(".gguf"):
                raise ValueError(f"repos.{name}: time_per_image belongs to a .gguf file, and each has one")
            if repo.time_per_image and repo.fine_tune_patterns:
                raise ValueError(f"repos.{name}: no fine-tune brings a .gguf file: fine_tune_patterns: null")
        return self

    @property
    def needs_gb(self) -> float:
        """What a GPU must have for the largest request."""
        return round(self.needed(self.max_pixels), 2)

    def needed(self, pixels: int) -> float:
        """Return what a GPU must have for so many pixels. Until that is predicted, only the weights are known."""
        return self.memory.needed(pixels) if self.memory else self.weights_gb

    @property
    def components(self) -> list[str]:
        """The components that from_pretrained() reads."""
        return sorted({*self.tiny, "scheduler"})

    @property
    def reads_t5(self) -> bool:
        return any(part["class"] == "T5EncoderModel" for part in self.tiny.values())

    @property
    def takes_lora(self) -> bool:
        return self.lora and not any((repo.file or "").endswith(".gguf") for repo in self.repos.values())

    @property
    def label(self) -> str:
        steps = f"{self.num_inference_steps} step{'s' if self.num_inference_steps > 1 else ''}"
        return ", ".join(part for part in (f"{self.title}: {self.size} px", steps, self.note) if part)

    @property
    def own_components(self) -> list[str]:
        """The components that a fine-tune cannot replace."""
        return [name for name, repo in self.repos.items() if repo.component and not repo.fine_tune_patterns]


class FineTune(Part):
    repo_id: str = Field(description="owner/name")
    preset: str = Field(description="Whose place it takes.")
    revision: Commit
    variant: Literal["plain", "fp16", "bf16", "fp32"] = Field(description="How its weight files are named.")
    license: str
    note: str = ""
    unverified: str | None = Field(None, description="What could not be confirmed.")


class Accelerator(Part):
    memory_gb: int = Field(description="As its maker says.")
    usable_gib: float = Field(description="What torch can have of it, in 2**30 bytes.")
    usd_per_hour: float | None = Field(None, description="Of the smallest instance. None: Baseten does not list it.")
    on_request: bool = Field(False, description="Baseten gives it to those who ask.")
    instance_memory_gb: int | None = Field(None, description="Main memory of the smallest instance, if it is small.")
    bfloat16: bool = True
    unusable: str | None = Field(None, description="Why torch cannot use it.")

    @property
    def usable_gb(self) -> float:
        """In 1e9 bytes, rounded down."""
        return math.floor(self.usable_gib * 2**30 / 1e8) / 10

    def holds(self, gigabytes: float, dtype: str) -> bool:
        return not self.unusable and self.usable_gb >= gigabytes and (self.bfloat16 or dtype != "bfloat16")

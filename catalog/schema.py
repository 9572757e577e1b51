"""What a preset and a family say: each key, once. `python -m catalog` reads the YAML files with it.

A preset is `presets/NAME.yaml`. It starts from its family (`family: NAME`), or from another preset (`like: NAME`), and
says what differs. Mappings are merged, key by key; anything else replaces, and so does each component of `published`.
A family is `families/NAME.yaml`, and can start from another one (`like: NAME`). What neither says has the default here.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
# No other pattern means the same to both deliveries of Baseten: model_cache's * crosses /, that of weights does not.
Pattern = Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)*(/\*)?$")]
Requirement = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+==[0-9][\w.]*$")]
Init = tuple[Literal["constant_", "normal_", "uniform_"], *tuple[float, ...]]
Settings = dict[str, Any]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Repo(Part):
    """A repository on Hugging Face, pinned. It is downloaded to a folder of the name that it has under `repos`."""

    repo_id: str = Field(description="owner/name")
    revision: Commit = Field(description="The commit. `python -m catalog.refresh --write` moves it to the newest.")
    allow_patterns: list[Pattern] = Field(description="The files to download: exact names, or FOLDER/* for all in it.")
    component: str | None = Field(None, description="The class of the component that it brings. Not of `pipeline`.")
    file: str | None = Field(
        None, description="The one file of the component, in the layout of its makers, also a .gguf."
    )
    scale: float | None = Field(None, description="Of a LoRA that is fused into the weights, named lora-NAME.")
    fine_tune_patterns: list[Pattern] | None = Field(
        None, description="What comes from a fine-tune in place of this component. Without, the preset takes none."
    )
    time_per_image: str | None = Field(None, description="What unpacking a GGUF file costs, as published.")
    unverified: str | None = Field(None, description="What could not be confirmed, and where it is from instead.")
    files: dict[str, int | None] = Field(
        description="All files of the repository at that commit and their bytes, as the Hub lists them; null: unknown."
    )


class ImageToImage(Part):
    class_name: str = Field(description="The pipeline of diffusers.")
    takes_size: bool = Field(description="Its call takes width and height.")


class Inpaint(Part):
    class_name: str = Field(description="The pipeline of diffusers.")
    adds_shift: bool = Field(description="It adds the VAE's shift to the latents of the masked image.")
    max_pixels: int | None = Field(description="It scales larger images down to this many pixels.")


class References(Part):
    count: int = Field(description="At most so many images of a request.")
    max_pixels: int = Field(description="The pipeline scales larger ones down to it.")
    min_side: int = Field(description="In pixels.")
    max_ratio: int = Field(description="Of the long side to the short one.")


class PromptTokens(Part):
    tokenizer: str = Field(description="The component that reads the most of a prompt.")
    count: int = Field(description="How many tokens it reads, without those that it adds.")


class Shared(Part):
    """What a family may say for all its presets, and each preset for itself. None has to say what has a default."""

    pipeline: str = Field(description="The class of diffusers.")
    tested: str = Field(description="The preset that stands for its family where only one is tested: the hardest.")
    lora: bool = Field(True, description="The class can load LoRAs.")
    demo: bool = Field(False, description="The weights of the demo fit: it is shaped like SDXL.")

    size: int = Field(description="Width and height that a request gets, in pixels.")
    max_size: int = Field(description="Of a side, in pixels.")
    size_multiple: int = Field(description="A side is a multiple of it.")
    min_steps: int = 1
    max_steps: int = 100
    max_steps_per_strength: int | None = Field(None, description="At most so many steps / strength, with an image.")
    max_guidance_scale: float = Field(20.0, description="0: without guidance.")
    guidance_parameter: str = Field("guidance_scale", description="The name of it in the pipeline's call.")
    negative_prompt: bool = Field(False, description="Takes effect at the preset's guidance.")
    strength: float = Field(0.6, description="Of an image, if a request has none.")

    dtype: Literal["float16", "bfloat16", "float32"] = Field(description="On the GPU.")
    variant: str | None = Field(None, description="In the names of the weight files: model.VARIANT.safetensors.")
    image_to_image: ImageToImage | None = None
    inpaint: Inpaint | None = None
    reference_images: References | None = None
    load_kwargs: Settings = Field({}, description="For from_pretrained. null leaves a component out.")
    call_kwargs: Settings = Field({}, description="For the pipeline's call.")
    scheduler: Settings = Field({}, description="In place of what the repository says; class_name: another one.")
    step_callback: Literal["callback_on_step_end", "callback"] = "callback_on_step_end"
    prompt_tokens: PromptTokens
    requirements: list[Requirement] = Field([], description="Packages beyond those of every preset, pinned.")

    accelerator: str = Field(description="The default: the smallest that fits.")
    activations_gb: float = Field(description="What is held on the GPU beside the weights at max_size: an estimate.")

    published: dict[str, Settings] = Field(
        {},
        description="What the files of the repository say beside sizes: by component, `scheduler` and `model_index`. "
        "`component_vae`: the VAE from another repository. `stored`: dtypes of files, where not `dtype`.",
    )
    left_out: dict[str, tuple[str, str]] = Field(
        {}, description="Library and class of what model_index.json names and load_kwargs leaves out."
    )
    tiny: dict[str, Settings] = Field(
        description="How the tests make each component, in this order, beside `published`: its `class`; sizes; `init`: "
        "tensors that a fresh model does not have as a trained one; `layout`: names in the file of its makers."
    )


class Preset(Shared):
    family: str
    title: str = Field(description="For people.")
    note: str = Field("", description="Goes behind title, size and steps where the preset is chosen.")
    num_inference_steps: int
    guidance_scale: float
    download_gb: float = Field(description="All that is downloaded, in 1e9 bytes.")
    weights_gb: float = Field(description="What of it is on the GPU, in `dtype`.")
    gated: bool = Field(False, description="The pipeline's repository wants a token.")
    license: str
    license_notice: str = Field(pattern=r"\.$", description="One sentence or more: is commercial use allowed?")
    repos: dict[str, Repo] = Field(description="`pipeline` first, then components, then LoRAs (lora-NAME).")
    source: str = Field(description="Where `published` was read, and what of it was not confirmed.")

    @model_validator(mode="after")
    def check(self) -> "Preset":
        if next(iter(self.repos), None) != "pipeline":
            raise ValueError("repos: the first is not pipeline")
        if self.size % self.size_multiple or self.max_size % self.size_multiple:
            raise ValueError(f"size, max_size: not a multiple of {self.size_multiple}")
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
    def components(self) -> list[str]:
        """What from_pretrained reads."""
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
        """Those that a fine-tune cannot bring in their place."""
        return [name for name, repo in self.repos.items() if repo.component and not repo.fine_tune_patterns]


class Accelerator(Part):
    memory_gb: int
    instance_memory_gb: int | None = Field(None, description="Main memory of the smallest instance, if small.")
    bfloat16: bool = True
    unusable: str | None = Field(None, description="Why torch cannot use it.")

"""What a client may ask and what it gets. The bounds come from config.yaml."""

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from model import picture
from pipeline_settings import read_settings

# Read here, and not in Model.__init__, because Truss takes /schema from this class.
SETTINGS = read_settings(Path(__file__).resolve().parent.parent / "config.yaml")
_DEFAULTS, _LIMITS = SETTINGS.defaults, SETTINGS.limits
MAX_SEED = 2**32 - 1
# Base64 of the images, two prompts of which each character is escaped as JSON may do, and the other fields.
MAX_BODY = _LIMITS.image_bytes * 4 // 3 + 2 * 12 * _LIMITS.prompt_characters + 10_000
# Two prompts of colons, and the fields: parsing a million fields takes seconds.
MAX_COLONS = 2 * _LIMITS.prompt_characters + 100
MAX_ERRORS = 10

Prompt = Annotated[str, Field(max_length=_LIMITS.prompt_characters)]
Pixels = Annotated[int, Field(ge=_LIMITS.min_size, le=_LIMITS.max_size, multiple_of=_LIMITS.size_multiple)]
Steps = Annotated[int, Field(ge=_LIMITS.min_steps, le=_LIMITS.max_steps)]
Guidance = Annotated[float, Field(ge=0, le=_LIMITS.guidance_scale)]
_NAMES: Any = {"enum": SETTINGS.lora_names} if SETTINGS.lora_names else None
_REFERENCES = SETTINGS.reference_images.count if SETTINGS.reference_images else 0
FILE = "A PNG, JPEG or WebP file, in base64 or as a data: URL"
START = "to start from; cropped to width x height, laid on white."
REFERENCE = f"that the prompt may speak of, or a list of up to {_REFERENCES}; with mask the one to paint on."
# What /schema says of image: a list only where the family takes several.
_SEVERAL = Annotated[list[str], Field(min_length=1, max_length=_REFERENCES)]
_IMAGE: Any = str | _SEVERAL | None if _REFERENCES else str | None


class LoraChoice(BaseModel):
    """A LoRA that an image is made with."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(description="One of config.yaml.", json_schema_extra=_NAMES)
    scale: float | None = Field(
        None, ge=-_LIMITS.lora_scale, le=_LIMITS.lora_scale, description="How much. Left out: as config.yaml says."
    )


def _leave_out_unusable(schema: dict[str, Any]) -> None:
    """Take the fields that this model cannot use out of /schema. A request that has one is told so."""
    image, mask = SETTINGS.image_to_image or SETTINGS.reference_images, SETTINGS.inpaint
    usable = {"negative_prompt": SETTINGS.negative_prompt, "guidance_scale": _LIMITS.guidance_scale > 1}
    usable |= {"image": image, "strength": SETTINGS.image_to_image or mask, "loras": SETTINGS.lora_names}
    usable |= dict.fromkeys(("mask", "mask_blur", "mask_padding"), mask)
    for name in [name for name, use in usable.items() if not use]:
        del schema["properties"][name]


class GenerationRequest(BaseModel):
    """One request. Numbers are not taken from strings, and unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=_leave_out_unusable
    )

    prompt: Prompt = Field(min_length=1, description="What the image shows.")
    negative_prompt: Prompt | None = Field(None, description="What the image must not show.")
    num_inference_steps: Steps = Field(_DEFAULTS.num_inference_steps, description="Denoising steps: more take longer.")
    guidance_scale: Guidance = Field(_DEFAULTS.guidance_scale, description="How closely the image follows the prompt.")
    width: Pixels = Field(_DEFAULTS.width, description="Width in pixels.")
    height: Pixels = Field(_DEFAULTS.height, description="Height in pixels.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Of the first image; the next count up. None: random."
    )
    image: str | list[str] | None = Field(None, description=f"{FILE}, {REFERENCE if _REFERENCES else START}")
    strength: float | None = Field(
        None, gt=0, le=1, description=f"How much of image is painted over. Left out {_DEFAULTS.strength}, with mask 1."
    )
    mask: str | None = Field(
        None, description=f"{FILE}: what is white is painted over, and the rest of image keeps its pixels."
    )
    mask_blur: int = Field(4, ge=0, le=64, description="How soft the edges of mask are, in pixels.")
    mask_padding: int | None = Field(
        None, ge=0, le=_LIMITS.max_size, description="Paints only mask and so many pixels around it, at the whole size."
    )
    loras: list[LoraChoice] = Field(
        [], max_length=_LIMITS.loras, fail_fast=True, description="LoRAs of this image. None: the model as it is."
    )
    num_images: int = Field(1, ge=1, le=_LIMITS.num_images, description="How many images.")
    output_format: Literal["png", "jpeg", "webp"] = Field("png", description="Format of the images.")
    quality: int = Field(90, ge=1, le=100, description="Quality of jpeg and webp.")
    stream: bool = Field(False, description="Answer in server-sent events: queued, each step, and the result.")

    # Before pydantic, which would name the field as image.str and image.list.
    @field_validator("image", mode="before", json_schema_input_type=_IMAGE)
    @classmethod
    def _image_can_be_used(cls, image: Any) -> Any:
        if image is None:
            return None
        if not (SETTINGS.image_to_image or SETTINGS.reference_images):
            raise ValueError("image cannot be used by this model: leave it out")
        most = SETTINGS.reference_images.count if SETTINGS.reference_images else 1
        several = image if isinstance(image, list) and most > 1 else [image]
        if not 1 <= len(several) <= most or not all(isinstance(each, str) for each in several):
            count = "one file" if most == 1 else f"one file, or a list of 1 to {most},"
            raise ValueError(f"send {count} in base64 or as a data: URL")
        picture.check(several, _LIMITS.image_bytes, _LIMITS.image_pixels)
        return image

    @field_validator("loras")
    @classmethod
    def _loras_can_be_chosen(cls, loras: list[LoraChoice]) -> list[LoraChoice]:
        names, known = {lora.name for lora in loras}, SETTINGS.lora_names
        if loras and not known:
            raise ValueError("loras cannot be used by this model, which has none to choose from: leave it out")
        if not names <= set(known):
            raise ValueError(f"there is no LoRA of that name: choose from {', '.join(known)}")
        if len(names) < len(loras):
            raise ValueError("it holds a name twice: name each LoRA once")
        return loras

    @field_validator("mask")
    @classmethod
    def _mask_can_be_used(cls, mask: str | None, info: ValidationInfo) -> str | None:
        if mask is None or "image" not in info.data:  # which is refused itself
            return mask
        if not SETTINGS.inpaint:
            raise ValueError("mask cannot be used by this model: leave it out")
        image = info.data["image"]
        if not isinstance(image, str):
            raise ValueError("mask needs one image, the one to paint on: send it as image")
        picture.check([image, mask], _LIMITS.image_bytes, _LIMITS.image_pixels)
        return mask

    @field_validator("mask_blur", "mask_padding")
    @classmethod
    def _mask_is_there(cls, pixels: int | None, info: ValidationInfo) -> int | None:
        if pixels is not None and info.data.get("mask", "refused itself") is None:
            raise ValueError(f"{info.field_name} has no effect without mask: leave it out")
        return pixels

    @model_validator(mode="after")
    def _strength_has_an_effect(self) -> "GenerationRequest":
        if self.image is None or (SETTINGS.reference_images and self.mask is None):
            if self.strength is not None:
                needed = "image" if self.image is None else "mask: image is a reference for this model"
                raise ValueError(f"strength has no effect without {needed}: leave it out")
            return self
        self.strength = self.strength or (_DEFAULTS.strength if self.mask is None else 1.0)
        least, most, factor = _LIMITS.min_steps, _LIMITS.max_steps, _LIMITS.max_steps_per_strength
        if factor and self.mask is None:
            most = min(most, int(factor * self.strength))
        else:
            least = max(least, ceil(min(1 / self.strength, 2.0**31)))
            # 1 / strength may be rounded down, and the pipelines round down too.
            least += int(least * self.strength) < 1
        if least > most:
            raise ValueError(f"strength {self.strength} is too little for any number of steps: raise it")
        # Left out, it follows strength.
        if "num_inference_steps" not in self.model_fields_set:
            self.num_inference_steps = min(max(self.num_inference_steps, least), most)
        if not least <= self.num_inference_steps <= most:
            raise ValueError(f"num_inference_steps must be {least} to {most} at strength {self.strength}: change one")
        return self

    @model_validator(mode="after")
    def _negative_prompt_has_an_effect(self) -> "GenerationRequest":
        if self.negative_prompt and not SETTINGS.negative_prompt:
            raise ValueError("negative_prompt cannot be used by this model: leave it out")
        if self.negative_prompt and self.guidance_scale <= 1:
            raise ValueError("negative_prompt has no effect unless guidance_scale is above 1: raise it or leave it out")
        return self

    # Truss calls these two: for JSON, and for msgpack. BaseModel.parse_raw ends in a RecursionError on deep nesting.
    @classmethod
    def parse_raw(cls, b: bytes, **_: Any) -> "GenerationRequest":  # type: ignore[override]  # Truss gives no str
        """Parse a JSON body. Raises ValidationError, or HTTPException (413) if no request needs to be so long."""
        return _few_errors(cls.model_validate_json, b, flood=len(b) > MAX_BODY or b.count(b":") > MAX_COLONS)

    @classmethod
    def parse_obj(cls, obj: Any) -> "GenerationRequest":
        """Check a body that is parsed already. Raises as parse_raw() does."""
        return _few_errors(cls.model_validate, obj, flood=isinstance(obj, dict) and len(obj) > MAX_COLONS)


def _few_errors(parse: Callable[[Any], GenerationRequest], body: Any, flood: bool) -> GenerationRequest:
    if flood:
        raise HTTPException(413, f"The request has more fields, or more than the {MAX_BODY} bytes, that one can need.")
    try:
        return parse(body)
    except ValidationError as error:
        # A name that nobody knows may have megabytes.
        lines = [
            {**line, "loc": tuple(str(name)[:100] for name in line["loc"])} for line in error.errors()[:MAX_ERRORS]
        ]
        # It takes no notice of the keys that an error has beside those that make one.
        raise ValidationError.from_exception_data(error.title, lines) from None  # type: ignore[arg-type]


class GeneratedImage(BaseModel):
    """One image, as base64, and the seed that makes it again alone."""

    image: str
    seed: int


class Timings(BaseModel):
    """Seconds of wall time. wait: for requests before it. generate: text, steps and decode, of all images together.

    text: until the first step, so with the start image. decode: from the last step to the picture. encode: to the file
    in base64. cold_start is there in the first answer only: its phases.
    """

    wait: float
    generate: float
    text: float
    steps: float
    decode: float
    encode: float
    cold_start: dict[str, float] | None = None


class GenerationResponse(BaseModel):
    """The images in the order of their seeds. warnings: what of the request had no effect, in sentences."""

    images: list[GeneratedImage]
    content_type: str
    warnings: list[str]
    timings: Timings

"""What a client may ask and what it gets. The bounds come from config.yaml."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model import picture

# Truss puts config.yaml beside model/ in the image, as it is in this repository. The bounds are
# read here, and not in Model.__init__, because Truss takes /schema from this class.
_CONFIG = yaml.safe_load((Path(__file__).parent.parent / "config.yaml").read_text("utf-8"))
_PIPELINE = _CONFIG["model_metadata"]["pipeline"]
_DEFAULTS = _PIPELINE["defaults"]
_LIMITS = _PIPELINE["limits"]

MAX_SEED = 2**32 - 1
STRENGTH = 0.6

Prompt = Annotated[str, Field(max_length=_LIMITS["prompt_characters"])]
Pixels = Annotated[int, Field(ge=_LIMITS["min_size"], le=_LIMITS["max_size"], multiple_of=_LIMITS["size_multiple"])]


class GenerationRequest(BaseModel):
    """One request. Numbers are not taken from strings, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Prompt = Field(min_length=1, description="What the image shows.")
    negative_prompt: Prompt | None = Field(None, description="What the image must not show.")
    num_inference_steps: int = Field(
        _DEFAULTS["num_inference_steps"],
        ge=1,
        le=_LIMITS["num_inference_steps"],
        description="Denoising steps: more take longer.",
    )
    guidance_scale: float = Field(
        _DEFAULTS["guidance_scale"],
        ge=0,
        le=_LIMITS["guidance_scale"],
        description="How closely the image follows the prompt.",
    )
    width: Pixels = Field(_DEFAULTS["width"], description="Width in pixels.")
    height: Pixels = Field(_DEFAULTS["height"], description="Height in pixels.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Seed of the first image; the next ones count up. Random if left out."
    )
    image: str | None = Field(
        None,
        description="A PNG, JPEG or WebP file in base64 to start from, scaled and cropped to width x height.",
    )
    strength: float | None = Field(
        None, gt=0, le=1, description=f"How much of image is painted over. {STRENGTH} if left out."
    )
    num_images: int = Field(1, ge=1, le=_LIMITS["num_images"], description="How many images.")
    output_format: Literal["png", "jpeg", "webp"] = Field("png", description="Format of the images.")
    quality: int = Field(90, ge=1, le=100, description="Quality of jpeg and webp.")

    @field_validator("image")
    @classmethod
    def _image_can_be_read(cls, image: str | None) -> str | None:
        if image is not None:
            if not _PIPELINE["image_to_image"]:
                raise ValueError("image cannot be used by this model: leave it out")
            picture.decode(image, _LIMITS["image_bytes"], _LIMITS["image_pixels"])
        return image

    @model_validator(mode="after")
    def _strength_has_an_effect(self) -> "GenerationRequest":
        if self.image is None and self.strength is not None:
            raise ValueError("strength has no effect without image: leave it out")
        if self.image is not None and int(self.num_inference_steps * (self.strength or STRENGTH)) < 1:
            raise ValueError("strength times num_inference_steps must be at least 1: raise one of them")
        return self

    @model_validator(mode="after")
    def _negative_prompt_has_an_effect(self) -> "GenerationRequest":
        if not self.negative_prompt:
            return self
        if not _PIPELINE["negative_prompt"]:
            raise ValueError("negative_prompt cannot be used by this model: leave it out")
        if self.guidance_scale <= 1:
            raise ValueError("negative_prompt has no effect unless guidance_scale is above 1: raise it or leave it out")
        return self

    @classmethod
    def parse_raw(cls, b: str | bytes, **_: Any) -> "GenerationRequest":
        """Parse a JSON body, for Truss. That of BaseModel ends in a RecursionError, and so a 500, on deep nesting."""
        return cls.model_validate_json(b)

    def start_image(self) -> Any:
        """Return image as an RGB picture of width x height, or None."""
        if self.image is None:
            return None
        decoded = picture.decode(self.image, _LIMITS["image_bytes"], _LIMITS["image_pixels"])
        return picture.fit(decoded, self.width, self.height)


class GeneratedImage(BaseModel):
    """One image, as base64, and the seed that makes it again alone."""

    image: str
    seed: int


class Timings(BaseModel):
    """Seconds of wall time. cold_start is there in the first answer only: its phases."""

    generate: float
    encode: float
    cold_start: dict[str, float] | None = None


class GenerationResponse(BaseModel):
    """The images in the order of their seeds."""

    images: list[GeneratedImage]
    content_type: str
    timings: Timings

"""Requests and answers. request_model() applies the bounds in config.yaml."""

from collections.abc import Callable
from math import ceil
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
from fastapi import HTTPException
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from metrics import counted
from model import images
from pipeline_settings import Settings

MAX_SEED = 2**32 - 1
STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
FILE = "A PNG, JPEG or WebP file, in base64 or as a data: URL"


class LoraChoice(BaseModel):
    """A LoRA for the images of a request."""

    model_config = STRICT

    name: str = Field(description="Name of a LoRA in config.yaml.")
    scale: float | None = Field(None, description="Strength of the LoRA. Default: the scale in config.yaml.")


def _leave_out_unusable(schema: dict[str, Any], model: Any) -> None:
    """Remove the fields that this model cannot use from /schema. Requests with one are refused."""
    settings: Settings = model.settings
    start, mask = settings.image_to_image, settings.inpaint
    usable: dict[str, Any] = dict.fromkeys(("mask", "mask_blur", "mask_padding"), mask)
    usable |= {"negative_prompt": settings.negative_prompt, "guidance_scale": settings.limits.guidance_scale > 1}
    usable |= {"image": start or settings.reference_images, "strength": start or mask, "loras": settings.lora_names}
    for name in [name for name, use in usable.items() if not use]:
        del schema["properties"][name]


class GenerationRequest(BaseModel):
    """One request. Numbers in strings and unknown fields are refused."""

    model_config = pydantic.ConfigDict(**STRICT, json_schema_extra=_leave_out_unusable)
    settings: ClassVar[Settings]
    # Larger bodies are refused unparsed. max_fields: counted in colons, as parsing a million fields takes seconds.
    max_bytes: ClassVar[int]
    max_fields: ClassVar[int]

    prompt: str = Field(min_length=1, description="Description of the image.")
    negative_prompt: str | None = Field(None, description="What the image should not show.")
    num_inference_steps: int = Field(description="Denoising steps: more take longer.")
    guidance_scale: float = Field(description="How closely the image follows the prompt.")
    width: int
    height: int
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Seed; further images count up. Default: random.")
    image: str | list[str] | None
    strength: float | None = Field(None, gt=0, le=1)
    mask: str | None = Field(None, description=f"{FILE}: white is painted over, the rest of image keeps its pixels.")
    mask_blur: int = Field(4, ge=0, le=64, description="The mask's edges fade outward: half at this many pixels.")
    mask_padding: int | None = Field(None, ge=0, description="Paints mask and these pixels around it, at full size.")
    loras: list[LoraChoice] = Field([], fail_fast=True, description="LoRAs of this image. None: the model as it is.")
    num_images: int = Field(1, ge=1, description="How many images.")
    output_format: Literal["png", "jpeg", "webp"] = Field("png", description="Format of the images.")
    quality: int = Field(90, ge=1, le=100, description="Quality of jpeg and webp.")
    stream: bool = Field(False, description="Answer with server-sent events: queued, steps, images, the rest.")

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        needed = {name for name, field in cls.model_fields.items() if field.is_required()}
        # Told as one that cannot be used, which says what can.
        body = {"image": None, **body} if "image" in needed else body
        return {name: value for name, value in body.items() if value is not None or name in needed}

    # Before pydantic, which would name the field as image.str and image.list.
    @field_validator("image", mode="before")
    @classmethod
    def _image_can_be_used(cls, image: Any) -> Any:
        limits, references = cls.settings.limits, cls.settings.reference_images
        if image is None and not cls.settings.needs_image:
            return None
        if not (cls.settings.image_to_image or references):
            raise ValueError("image cannot be used by this model: leave it out")
        most = references.count if references else 1
        several = image if isinstance(image, list) and most > 1 else [image]
        if not 1 <= len(several) <= most or not all(isinstance(each, str) for each in several):
            count = "one file" if most == 1 else f"one file, or a list of 1 to {most},"
            raise ValueError(f"send {count} in base64 or as a data: URL")
        images.check(several, limits.image_bytes, limits.image_pixels)
        return image

    @field_validator("loras")
    @classmethod
    def _loras_can_be_chosen(cls, loras: list[LoraChoice]) -> list[LoraChoice]:
        names, known = {lora.name for lora in loras}, cls.settings.lora_names
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
        if not cls.settings.inpaint:
            raise ValueError("mask cannot be used by this model: leave it out")
        image = info.data["image"]
        if not isinstance(image, str):
            raise ValueError("mask needs one image, the one to paint on: send it as image")
        images.check([image, mask], cls.settings.limits.image_bytes, cls.settings.limits.image_pixels)
        return mask

    @field_validator("mask_blur", "mask_padding")
    @classmethod
    def _mask_is_there(cls, pixels: int | None, info: ValidationInfo) -> int | None:
        if pixels is not None and info.data.get("mask", "refused itself") is None:
            raise ValueError(f"{info.field_name} has no effect without mask: leave it out")
        return pixels

    @model_validator(mode="after")
    def _gpu_can_hold_it(self) -> Self:
        pixels, multiple = self.settings.limits.max_pixels, self.settings.limits.size_multiple
        if self.height > (most := pixels // self.width // multiple * multiple):
            bound = f"this model makes {pixels} pixels at most"
            raise ValueError(f"at width {self.width}, height is at most {most}: {bound}")
        return self

    @model_validator(mode="after")
    def _strength_has_an_effect(self) -> Self:
        settings, limits = self.settings, self.settings.limits
        if self.image is None or (settings.reference_images and self.mask is None):
            if self.strength is not None:
                kind = "mask" if settings.inpaint else "a start"
                needed = "image" if self.image is None else f"{kind}: image is a reference for this model"
                raise ValueError(f"strength has no effect without {needed}: leave it out")
            return self
        self.strength = self.strength or (settings.defaults.strength if self.mask is None else 1.0)
        least, most, factor = limits.min_steps, limits.max_steps, limits.max_steps_per_strength
        if factor and self.mask is None:
            most = min(most, int(factor * self.strength))
        else:
            least = max(least, ceil(min(1 / self.strength, 2.0**31)))
            # 1 / strength may be rounded down, and the pipelines round down too.
            least += int(least * self.strength) < 1
        if least > most:
            raise ValueError(f"strength {self.strength} is too little for any number of steps: raise it")
        # By default it follows strength.
        if "num_inference_steps" not in self.model_fields_set:
            self.num_inference_steps = min(max(self.num_inference_steps, least), most)
        if not least <= self.num_inference_steps <= most:
            raise ValueError(f"num_inference_steps must be {least} to {most} at strength {self.strength}: change one")
        return self

    @model_validator(mode="after")
    def _negative_prompt_has_an_effect(self) -> Self:
        if self.negative_prompt and not self.settings.negative_prompt:
            raise ValueError("negative_prompt cannot be used by this model: leave it out")
        if self.negative_prompt and self.guidance_scale <= 1:
            raise ValueError("negative_prompt has no effect unless guidance_scale is above 1: raise it or leave it out")
        return self

    # Truss calls these two, for JSON and msgpack. BaseModel.parse_raw raises RecursionError on deep nesting.
    @classmethod
    def parse_raw(cls, b: bytes, **_: Any) -> Self:  # type: ignore[override]  # Truss gives no str
        """Parse a JSON body. Raises ValidationError, or HTTPException (413) for a body that is too large."""
        return cls._parse(cls.model_validate_json, b, len(b) > cls.max_bytes or b.count(b":") > cls.max_fields)

    @classmethod
    def parse_obj(cls, obj: Any) -> Self:
        """Check a body that is parsed already. Raises as parse_raw() does."""
        values = obj.values() if isinstance(obj, dict) else ()
        texts = (text for each in values for text in (each if isinstance(each, list) else [each]))
        size = sum(len(text) for text in texts if isinstance(text, str | bytes))
        return cls._parse(cls.model_validate, obj, len(values) > cls.max_fields or size > cls.max_bytes)

    @classmethod
    @counted()
    def _parse(cls, parse: Callable[[Any], Self], body: Any, flood: bool) -> Self:
        if flood:
            raise HTTPException(413, f"The request has too many fields or more than {cls.max_bytes} bytes: shorten it.")
        try:
            return parse(body)
        except ValidationError as error:
            # Unknown field names can be megabytes long: truncate.
            short = [{**each, "loc": tuple(str(name)[:100] for name in each["loc"])} for each in error.errors()]
            for each in (each for each in short if each["type"] == "value_error"):
                sentence = str(each["msg"]).removeprefix("Value error, ")
                # What is wrong with several fields begins with the name of one.
                each["loc"] = each["loc"] or (sentence.split()[0],)
                each["type"] = PydanticCustomError("value_error", sentence)
            # from_exception_data ignores the extra keys in an error.
            raise ValidationError.from_exception_data(error.title, short[:10]) from None  # type: ignore[arg-type]


def request_model(settings: Settings) -> type[GenerationRequest]:
    """Return the class of requests with the bounds and defaults of settings, from which Truss makes /schema."""
    limits, defaults, references = settings.limits, settings.defaults, settings.reference_images
    names: Any = {"enum": settings.lora_names} if settings.lora_names else None
    pixels: dict[str, Any] = {"ge": limits.min_size, "le": limits.max_size, "multiple_of": limits.size_multiple}
    pixels["description"] = f"In pixels. width x height is at most {limits.max_pixels}."
    steps = {"ge": limits.min_steps, "le": limits.max_steps}
    most = references.count if references else 1
    files: Any = str | Annotated[list[str], Field(min_length=1, max_length=most)] if most > 1 else str
    image = {"annotation": files} if settings.needs_image else {"annotation": files | None, "default": None}
    listed = f", or a list of up to {most}" if most > 1 else ""
    painted = "; with mask the one to paint on" if settings.inpaint else ""
    start = "to start from; cropped to width x height, laid on white"
    use = "to edit" if settings.needs_image else "that the prompt may speak of"
    image["description"] = f"{FILE}, {f'{use}{listed}{painted}' if references else start}."
    scale = {"ge": -limits.lora_scale, "le": limits.lora_scale}
    choice = _bounded(LoraChoice, name={"json_schema_extra": names}, scale=scale)
    made: type[GenerationRequest] = _bounded(
        GenerationRequest,
        prompt={"max_length": limits.prompt_characters},
        negative_prompt={"max_length": limits.prompt_characters},
        num_inference_steps={"default": defaults.num_inference_steps, **steps},
        guidance_scale={"default": defaults.guidance_scale, "ge": 0, "le": limits.guidance_scale},
        width={"default": defaults.width, **pixels},
        height={"default": defaults.height, **pixels},
        image=image,
        strength={"description": f"How much to change image. Default: {defaults.strength}, with mask 1."},
        mask_padding={"le": limits.max_size},
        loras={"annotation": list[choice], "max_length": limits.loras},  # type: ignore[valid-type]
        num_images={"le": limits.num_images},
    )
    made.settings = settings
    # Images in base64, two prompts with every character escaped in JSON, and the other fields.
    made.max_bytes = limits.image_bytes * 4 // 3 + 2 * 12 * limits.prompt_characters + 10_000
    made.max_fields = 2 * limits.prompt_characters + 100
    return made


def _bounded(model: type[BaseModel], **bounds: dict[str, Any]) -> Any:
    """Return a subclass whose fields also have these bounds. annotation: replaces the field's type."""
    fields: dict[str, Any] = {}
    for name, more in bounds.items():
        own = model.model_fields[name]
        fields[name] = Annotated[more.pop("annotation", own.annotation), own, Field(**more)]
    return pydantic.create_model(model.__name__, __base__=model, __doc__=model.__doc__, __module__=__name__, **fields)


class GeneratedImage(BaseModel):
    """One image in base64, and the seed that reproduces it."""

    image: str
    seed: int


class Timings(BaseModel):
    """Seconds of wall time. wait: in the queue. generate: text, steps and decode, for all images.

    text: until the first step, including the start image. decode: from the last step to the image. encode: to a file in
    base64. cold_start: phases of the cold start, only in a replica's first answer.
    """

    wait: float
    generate: float
    text: float
    steps: float
    decode: float
    encode: float
    cold_start: dict[str, float] | None = None


class GenerationResponse(BaseModel):
    """The images in the order of their seeds. warnings: sentences about parts of the request without effect."""

    images: list[GeneratedImage]
    content_type: str
    warnings: list[str]
    timings: Timings

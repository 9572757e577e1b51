"""The fields of a request, as the model's /schema describes them, and what a visitor filled in. No gradio here."""

import base64
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fast_truss.errors import InvalidInput

# Where a name says too little to a visitor.
LABELS = {
    "mask": "Mask: white is painted over, the rest is kept",
    "loras": "Styles",
    "num_images": "Images",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "output_format": "Format",
}
# In the schema they are text.
FILES = ("image", "mask")
KINDS = {"string": "text", "boolean": "switch", "integer": "integer", "number": "number"}
PROMPT_ALONE = {"properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}


@dataclasses.dataclass(frozen=True)
class Field:
    """kind: text, file, styles, choice, switch, integer, number or json. schema: of a value that is not null."""

    name: str
    label: str
    kind: str
    schema: dict[str, Any]
    required: bool
    choices: Sequence[str]


def fields_of(root: dict[str, Any]) -> list[Field]:
    """Return the fields that leave a visitor something to choose. root: the schema of a request."""
    fields = []
    for name, found in root["properties"].items():
        schema = _value(found, root)
        # The client itself asks for a stream.
        if name == "stream" or schema.get("minimum", 0) == schema.get("maximum"):
            continue
        styles = _value(schema.get("items", {}), root).get("properties", {}).get("name", {}).get("enum")
        kind = "file" if name in FILES else KINDS.get(schema.get("type", ""), "json")
        kind = "styles" if styles else "choice" if "enum" in schema else kind
        label, required = LABELS.get(name) or name.capitalize().replace("_", " "), name in root.get("required", ())
        fields.append(Field(name, label, kind, schema, required, styles or schema.get("enum", ())))
    return fields


def _value(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a value that is not null, without references. Of a file or a list of them: with maxItems."""
    choices = [each for each in schema.get("anyOf", []) if each.get("type") != "null"]
    merged = {key: value for each in [*choices[::-1], schema] for key, value in each.items() if key != "anyOf"}
    reference = merged.pop("$ref", "").rsplit("/", 1)[-1]
    return {**_value(root["$defs"][reference], root), **merged} if reference else merged


def request_of(fields: list[Field], values: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the request. Raises InvalidInput with a sentence; the model checks the rest.

    values: of each field, by its name, a list of its value; of styles, also of the scale of each that there is.
    """
    request = {}
    for field in fields:
        value, *scales = values.get(field.name) or [None]
        found = None if value is None or value in ("", []) else _read(field, value, scales)
        if field.required and found in (None, ""):
            raise InvalidInput(f"{field.label} is empty: fill it in first.")
        # A default is left out: some follow another field, and some are refused where they have no effect.
        if found not in (None, "", [], field.schema.get("default")):
            request[field.name] = found
    return request


def _read(field: Field, value: Any, scales: list[Any]) -> Any:
    try:
        if field.kind == "text":
            return value.strip()
        if field.kind == "json":
            return json.loads(value)
        if field.kind in ("integer", "number") and isinstance(value, str):
            return int(value) if field.kind == "integer" else float(value)
        if field.kind == "styles":
            known = dict(zip(field.choices, scales, strict=True))
            return [{"name": name} | ({"scale": float(known[name])} if known[name] else {}) for name in value]
        if field.kind == "file":
            # A gallery gives each with its caption.
            paths = [each[0] for each in value] if isinstance(value, list) else [value]
            files = [base64.b64encode(Path(path).read_bytes()).decode() for path in paths]
            return files if len(files) > 1 else files[0]
    except (AttributeError, LookupError, OSError, OverflowError, TypeError, ValueError):
        raise InvalidInput(f"{field.label} cannot be read: fill it in again.") from None
    return value

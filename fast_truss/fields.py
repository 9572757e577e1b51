"""The fields of a request from the deployment's /schema, for the command line and the page."""

import base64
import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fast_truss import Client, InvalidInput, NotFound, RequestRefused
from fast_truss.console import print_table
from fast_truss.options import AsJson, Where

HELP = "The prompt, and any field of the model, such as --width 512. `fast-truss fields` lists them."
LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf", "maxLength", "maxItems", "enum")
# Labels where the field's name tells a visitor too little.
LABELS = {
    "mask": "Mask: white is repainted, black is kept",
    "loras": "Styles",
    "num_images": "Images",
    "num_inference_steps": "Steps",
}
# The schema types them as strings.
FILES = ("image", "mask")
KINDS = {"string": "text", "boolean": "switch", "integer": "integer", "number": "number"}
READERS: dict[str, Callable[[str], Any]] = {"text": str.strip, "choice": str, "integer": int, "number": float}
PROMPT_ALONE = {"properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
PROMPT = "a lighthouse on a cliff at dawn"
# A PNG of 8 x 8 pixels, for models that need an image to edit.
GRAY = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mNsaGhgwAaYGHCAwSkBADAXAZDUexXGAAAAAElFTkSuQmCC"


@dataclasses.dataclass(frozen=True)
class Field:
    """kind: text, file, styles, choice, switch, integer, number or json. schema: that of a non-null value."""

    name: str
    label: str
    kind: str
    schema: dict[str, Any]
    required: bool = False
    choices: Sequence[str] = ()

    def read(self, text: str) -> Any:
        """Parse text; a style is NAME or NAME:SCALE. Raises ValueError, or OSError for a file."""
        if self.kind == "file":
            return base64.b64encode(Path(text).read_bytes()).decode()
        if self.kind == "styles":
            name, _, scale = text.partition(":")
            return {"name": name, "scale": float(scale)} if scale else {"name": name}
        return READERS.get(self.kind, json.loads)(text)


def fields_of(root: dict[str, Any]) -> list[Field]:
    """Return the fields that a user can set. root: the schema of a request."""
    fields = []
    for name, found in root["properties"].items():
        schema = _value(found, root)
        # The client sets stream itself.
        if name == "stream" or schema.get("minimum", 0) == schema.get("maximum"):
            continue
        styles = _value(schema.get("items", {}), root).get("properties", {}).get("name", {}).get("enum")
        kind = "file" if name in FILES else KINDS.get(schema.get("type", ""), "json")
        kind = "styles" if styles else "choice" if "enum" in schema else kind
        label, required = LABELS.get(name) or name.capitalize().replace("_", " "), name in root.get("required", ())
        fields.append(Field(name, label, kind, schema, required, styles or schema.get("enum", ())))
    return fields


def _value(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a non-null value with references resolved; a file or a list of files keeps maxItems."""
    choices = [each for each in schema.get("anyOf", []) if each.get("type") != "null"]
    merged = {key: value for each in [*choices[::-1], schema] for key, value in each.items() if key != "anyOf"}
    reference = merged.pop("$ref", "").rsplit("/", 1)[-1]
    return {**_value(root["$defs"][reference], root), **merged} if reference else merged


def show(where: Where, as_json: AsJson = False) -> None:
    """Show the fields of a request with type, bounds, default and description. Wakes the model."""
    schema = where.client().schema(where.timeout)
    if as_json:
        return print(json.dumps(schema))
    rows = []
    for field in fields_of(schema):
        found = field.schema
        bounds = ", ".join(f"{limit} {found[limit]}" for limit in LIMITS if limit in found)
        default = "" if found.get("default") is None else json.dumps(found["default"])
        rows.append([field.name, field.kind, bounds, default, found.get("description", "")])
    print_table("", ("field", "type", "bounds", "default", "description"), rows)


def given(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Split words into the values of each `--field value` or `--field=value`, and the rest. Raises InvalidInput."""
    found: dict[str, list[str]] = {}
    rest, left = [], iter(words)
    for word in left:
        if not word.startswith("--"):
            rest.append(word)
            continue
        option, equals, value = word.partition("=")
        text = value if equals else next(left, None)
        if text is None:
            raise InvalidInput(f"{option} needs a value.")
        found.setdefault(option[2:].replace("-", "_"), []).append(text)
    return found, rest


def request_of(client: Client, options: dict[str, list[str]], timeout: float) -> dict[str, Any]:
    """Return the fields that the options name. Raises InvalidInput; the model checks the rest."""
    if not options:
        return {}
    try:
        fields = {field.name: field for field in fields_of(client.schema(timeout))}
    except NotFound:  # the deployment has no /schema
        fields = {name: Field(name, name, "file" if name in FILES else "json", {}) for name in options}
    request: dict[str, list[Any]] = {}
    for name, texts in options.items():
        option = f"--{name.replace('_', '-')}"
        field = fields.get(name) or fields.get(f"{name}s")  # `loras` is given as --lora, repeatedly
        if field is None:
            raise InvalidInput(f"{option} is not a field of this model: use one of {', '.join(fields)}.")
        request.setdefault(field.name, []).extend(_given_value(field, option, text) for text in texts)
    lists = {name for name, field in fields.items() if field.schema.get("type") == "array"}
    return {name: each if name in lists or len(each) > 1 else each[0] for name, each in request.items()}


def _given_value(field: Field, option: str, text: str) -> Any:
    try:
        return field.read(text)
    except OSError as error:
        raise InvalidInput(f"{option} is {text[:200]!r}: it cannot be read ({error.strerror}).") from None
    except (RecursionError, ValueError):
        if field.kind == "json":
            return text  # the model checks it
        raise InvalidInput(f"{option} is {text[:200]!r}: it cannot be read as {field.kind}.") from None


def example(client: Client, timeout: float, **asked: Any) -> dict[str, Any]:
    """Return a request of what is asked and the rest of what the model needs. Wakes the model."""
    with contextlib.suppress(NotFound, RequestRefused):  # the deployment has no /schema
        if "image" in client.schema(timeout).get("required", ()):
            asked = {"image": GRAY, **asked}
    return {"prompt": PROMPT, **asked}


def request_of_form(fields: list[Field], values: dict[str, Any]) -> dict[str, Any]:
    """Return the request for the values of a form. Raises InvalidInput; the model checks the rest."""
    request = {}
    for field in fields:
        value = values.get(field.name)
        try:
            found = None if value in (None, "", []) else _form_value(field, value)
        except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
            raise InvalidInput(f"{field.label} cannot be read as {field.kind}: fill it in again.") from None
        if field.required and not found:
            raise InvalidInput(f"{field.label} is empty: fill it in first.")
        # Leave out defaults: some depend on another field, and some are refused where they have no effect.
        if found not in (None, "", field.schema.get("default")):
            request[field.name] = found
    return request


def _form_value(field: Field, value: Any) -> Any:
    if field.kind == "styles":
        return [field.read(each) for each in value]
    if field.kind == "file" and isinstance(value, list):
        # A gallery returns (path, caption) pairs.
        files = [field.read(path) for path, _ in value]
        return files if len(files) > 1 else files[0]
    return field.read(value) if isinstance(value, str) or field.kind == "text" else value

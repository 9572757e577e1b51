"""The fields of a request on the command line: names, types and bounds are those of the deployment's own /schema."""

import base64
import difflib
import json
from pathlib import Path
from typing import Any

from fast_truss import Client, InvalidInput, NotFound
from fast_truss.console import print_table
from fast_truss.options import AsJson, Where

HELP = "What the image shows, and any field of the model, such as --width 512. `fast-truss fields` lists them."
# Baseten takes 100 MB; base64 makes a file a third longer.
IMAGE_BYTES = 70_000_000
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "maxLength": "at most {} characters",
    "maxItems": "at most {}",
}
NUMBERS: dict[Any, tuple[Any, str]] = {"integer": (int, "a whole number"), "number": (float, "a number")}


def show(where: Where, as_json: AsJson = False) -> None:
    """Show the fields of a request: type, bounds, default and description. Goes through a cold start."""
    schema = where.client().schema(where.timeout)
    if as_json:
        return print(json.dumps(schema))
    rows = []
    for name, field in schema["properties"].items():
        forms = _forms(field, schema)
        bounds = [words.format(form[key]) for form in forms for key, words in BOUNDS.items() if key in form]
        bounds += [", ".join(map(str, form["enum"])) for form in forms if "enum" in form]
        default = "" if field.get("default") is None else json.dumps(field["default"])
        kinds = " or ".join(str(form.get("type", "any")) for form in forms)
        rows.append([name, kinds, ", ".join(bounds), default, field.get("description", "")])
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
    """Return the fields that the options name, with values of their types. The model checks the bounds.

    A deployment that does not tell its fields gets what JSON makes of the values. Raises InvalidInput.
    """
    if not options:
        return {}  # there is nothing to ask the deployment for
    try:
        schema = client.schema(timeout)
    except NotFound:
        return {name: _untyped(name, texts) for name, texts in options.items()}
    properties, texts = schema["properties"], dict[str, list[str]]()
    for name, values in options.items():
        field = name if name in properties else f"{name}s"  # each of `loras` is a --lora
        if field not in properties:
            near = difflib.get_close_matches(name, properties, n=1)
            hint = f"did you mean {_option(near[0])}?" if near else "`fast-truss fields` lists them."
            raise InvalidInput(f"{_option(name)} is not a field of this model: {hint}")
        texts[field] = texts.get(field, []) + values
    return {name: _typed(name, values, properties[name], schema) for name, values in texts.items()}


def _typed(name: str, texts: list[str], field: dict[str, Any], schema: dict[str, Any]) -> Any:
    forms = _forms(field, schema)
    array = next((form for form in forms if form.get("type") == "array"), None)
    single = next((form for form in forms if form.get("type") != "array"), None)
    is_file = "base64" in field.get("description", "")
    if array and (single is None or len(texts) > 1):
        return [_value(name, text, _forms(array["items"], schema)[0], schema, is_file) for text in texts]
    if len(texts) > 1:
        raise InvalidInput(f"{_option(name)} is given {len(texts)} times: this model takes one.")
    return _value(name, texts[0], single or {}, schema, is_file)


def _value(name: str, text: str, form: dict[str, Any], schema: dict[str, Any], is_file: bool = False) -> Any:
    kind = form.get("type")
    if kind == "string":
        return _file(name, text) if is_file else text
    if kind == "object" and not text.startswith("{"):
        # NAME:SCALE and the like: the object's own fields in their order.
        inner = form["properties"].items()
        parts = zip(inner, text.split(":", len(inner) - 1), strict=False)
        return {key: _value(name, part, _forms(each, schema)[0], schema) for (key, each), part in parts}
    read, words = NUMBERS.get(kind, (json.loads, "true or false" if kind == "boolean" else "a value as in JSON"))
    try:
        return read(text)
    except ValueError:
        raise InvalidInput(f"{_option(name)} is {text[:100]!r}: use {words}.") from None


def _untyped(name: str, texts: list[str]) -> Any:
    def read(text: str) -> Any:
        if name in ("image", "mask"):
            return _file(name, text)
        try:
            return json.loads(text)
        except ValueError:
            return text

    return read(texts[0]) if len(texts) == 1 else [read(text) for text in texts]


def _file(name: str, file: str) -> str:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{_option(name)} is {file[:200]!r}: it cannot be read ({error.strerror}).") from None
    if len(content) > IMAGE_BYTES:
        limit = f"use at most {IMAGE_BYTES / 1e6:.0f} MB."
        raise InvalidInput(f"{_option(name)} has {len(content) / 1e6:.0f} MB: {limit}")
    return base64.b64encode(content).decode()


def _forms(field: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a value may be, without null: each with its references followed."""
    found = []
    for form in field.get("anyOf", [field]):
        named = schema["$defs"][form["$ref"].rpartition("/")[2]] if "$ref" in form else {}
        found.append({**named, **form})
    return [form for form in found if form.get("type") != "null"]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"

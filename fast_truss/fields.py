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


def show(where: Where, as_json: AsJson = False) -> None:
    """Show the fields of a request: type, bounds, default and description. Goes through a cold start."""
    schema = where.client().schema(where.timeout)
    if as_json:
        return print(json.dumps(schema))
    rows = []
    for name, field in schema["properties"].items():
        forms = _forms(field, schema)
        kinds = " or ".join(str(form.get("type", "any")) for form in forms)
        default = "" if field.get("default") is None else json.dumps(field["default"])
        rows.append([name, kinds, _bounds(forms), default, field.get("description", "")])
    print_table("", ("field", "type", "bounds", "default", "description"), rows)


def given(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Split words into the values of each `--field value` or `--field=value`, and the rest."""
    found: dict[str, list[str]] = {}
    rest = []
    left = iter(words)
    for word in left:
        if not word.startswith("--"):
            rest.append(word)
            continue
        option, equals, value = word.partition("=")
        if not equals:
            try:
                value = next(left)
            except StopIteration:
                raise InvalidInput(f"{option} needs a value.") from None
        found.setdefault(option[2:].replace("-", "_"), []).append(value)
    return found, rest


def request_of(client: Client, options: dict[str, list[str]], timeout: float) -> dict[str, Any]:
    """Return the fields that the options name, with values of their types. The model checks the bounds.

    A deployment that does not tell its fields gets what JSON makes of the values. Raises InvalidInput.
    """
    if not options:
        return {}  # nothing to ask the deployment for
    try:
        schema = client.schema(timeout)
    except NotFound:
        return {name: _untyped(name, texts) for name, texts in options.items()}
    properties = schema["properties"]
    request = {}
    for name, texts in options.items():
        field = name if name in properties else f"{name}s"  # each of `loras` is a --lora
        if field not in properties:
            near = difflib.get_close_matches(name, properties, n=1)
            hint = f"did you mean {_option(near[0])}?" if near else "`fast-truss fields` lists them."
            raise InvalidInput(f"{_option(name)} is not a field of this model: {hint}")
        request[field] = _typed(_option(name), texts, properties[field], schema)
    return request


def _typed(option: str, texts: list[str], field: dict[str, Any], schema: dict[str, Any]) -> Any:
    forms = _forms(field, schema)
    array = next((form for form in forms if form.get("type") == "array"), None)
    single = next((form for form in forms if form.get("type") != "array"), None)
    is_file = "base64" in field.get("description", "")
    if array and (single is None or len(texts) > 1):
        return [_value(option, text, _forms(array["items"], schema)[0], is_file, schema) for text in texts]
    if len(texts) > 1:
        raise InvalidInput(f"{option} is given {len(texts)} times: this model takes one.")
    return _value(option, texts[0], single or {}, is_file, schema)


def _value(option: str, text: str, form: dict[str, Any], is_file: bool, schema: dict[str, Any]) -> Any:
    kind = form.get("type")
    if kind == "string":
        return _file(option, text) if is_file else text
    if kind == "object" and not text.startswith("{"):
        # NAME:SCALE and the like: the object's own fields in their order.
        parts = zip(form["properties"].items(), text.split(":", len(form["properties"]) - 1), strict=False)
        return {name: _value(option, part, _forms(each, schema)[0], False, schema) for (name, each), part in parts}
    numbers: dict[Any, tuple[Any, str]] = {"integer": (int, "a whole number"), "number": (float, "a number")}
    read, words = numbers.get(kind, (json.loads, "true or false" if kind == "boolean" else "a value as in JSON"))
    try:
        return read(text)
    except ValueError:
        raise InvalidInput(f"{option} is {text[:100]!r}: use {words}.") from None


def _untyped(name: str, texts: list[str]) -> Any:
    values: list[Any] = []
    for text in texts:
        if name in ("image", "mask"):
            values.append(_file(_option(name), text))
            continue
        try:
            values.append(json.loads(text))
        except ValueError:
            values.append(text)
    return values if len(values) > 1 else values[0]


def _file(option: str, name: str) -> str:
    try:
        content = Path(name).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{option} is {name[:200]!r}: it cannot be read ({error.strerror}).") from None
    if len(content) > IMAGE_BYTES:
        raise InvalidInput(f"{option} has {len(content) / 1e6:.0f} MB: use at most {IMAGE_BYTES / 1e6:.0f} MB.")
    return base64.b64encode(content).decode()


def _forms(field: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a value may be, without null: each with its references followed."""
    found = []
    for form in field.get("anyOf", [field]):
        if "$ref" in form:
            form = {**schema["$defs"][form["$ref"].rpartition("/")[2]], **form}
        if form.get("type") != "null":
            found.append(form)
    return found


def _bounds(forms: list[dict[str, Any]]) -> str:
    words = [text.format(form[name]) for form in forms for name, text in BOUNDS.items() if name in form]
    words += [", ".join(map(str, form["enum"])) for form in forms if "enum" in form]
    return ", ".join(words)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"

"""The fields of a request on the command line, as the deployment's own /schema describes them."""

import base64
import json
from pathlib import Path
from typing import Any

from fast_truss import Client, InvalidInput, NotFound
from fast_truss.console import print_table
from fast_truss.form import FILES, Field, fields_of
from fast_truss.options import AsJson, Where

HELP = "What the image shows, and any field of the model, such as --width 512. `fast-truss fields` lists them."
LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf", "maxLength", "maxItems", "enum")


def show(where: Where, as_json: AsJson = False) -> None:
    """Show the fields of a request: type, bounds, default and description. Goes through a cold start."""
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
    """Return the fields that the options name. The model checks their values. Raises InvalidInput."""
    if not options:
        return {}  # there is nothing to ask the deployment for
    try:
        fields = {field.name: field for field in fields_of(client.schema(timeout))}
    except NotFound:  # a deployment that does not describe its fields
        fields = {name: Field(name, name, "file" if name in FILES else "json", {}, False, ()) for name in options}
    request: dict[str, list[Any]] = {}
    for name, texts in options.items():
        option = f"--{name.replace('_', '-')}"
        field = fields.get(name) or fields.get(f"{name}s")  # each of `loras` is a --lora
        if field is None:
            raise InvalidInput(f"{option} is not a field of this model, which takes {', '.join(fields)}.")
        request.setdefault(field.name, []).extend(_value(option, text, field.kind) for text in texts)
    lists = {name for name, field in fields.items() if field.schema.get("type") == "array"}
    return {name: each if name in lists or len(each) > 1 else each[0] for name, each in request.items()}


def _value(option: str, text: str, kind: str) -> Any:
    if kind in ("text", "choice"):
        return text
    if kind == "styles":
        name, _, scale = text.partition(":")
        return {"name": name, "scale": _value(option, scale, "number")} if scale else {"name": name}
    if kind == "file":
        try:
            return base64.b64encode(Path(text).read_bytes()).decode()
        except OSError as error:
            raise InvalidInput(f"{option} is {text[:200]!r}: it cannot be read ({error.strerror}).") from None
    try:
        return float(text) if kind == "number" else json.loads(text)
    except ValueError:
        return text  # the model says what is wrong with it

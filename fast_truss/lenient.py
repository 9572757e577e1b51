"""Answers that lack what the SDK's models require: a field that is deprecated there may go at any time."""

import contextlib
import functools
import types
import typing
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from fast_truss.errors import UnexpectedAnswer

MISSING = object()


class FieldMissing(UnexpectedAnswer, AttributeError):
    """The answer lacks a field that is read."""


def lenient(kind: Any, value: Any) -> Any:
    """Return value, of JSON, as kind, or MISSING. Reading a field that does not fit raises FieldMissing."""
    with contextlib.suppress(ValidationError):
        return TypeAdapter(kind).validate_python(value)
    arguments, origin = typing.get_args(kind), typing.get_origin(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, dict):
        fields = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
        found = {key: lenient(annotation, value[key]) for key, annotation in fields.items() if key in value}
        return _class(kind).model_construct(**{key: each for key, each in found.items() if each is not MISSING})
    if origin is list and isinstance(value, list):
        return [each for each in (lenient(arguments[0], each) for each in value) if each is not MISSING]
    if origin in (typing.Union, types.UnionType):
        return next((each for each in (lenient(each, value) for each in arguments) if each is not MISSING), MISSING)
    return MISSING


@functools.cache
def _class(kind: type[BaseModel]) -> type[BaseModel]:
    def __getattr__(self: BaseModel, name: str) -> Any:
        if name in kind.model_fields:
            raise FieldMissing(f"Baseten's answer lacks `{name}` of {kind.__name__}, which is needed here.")
        raise AttributeError(name)

    return type(kind.__name__, (kind,), {"__getattr__": __getattr__, "__module__": kind.__module__})

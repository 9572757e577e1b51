"""Requests made from the schema that a server shows, most of them with something wrong."""

import re
from typing import Any

from hypothesis import strategies as st

# How Truss words what a request lacks: a sentence for each field.
SENTENCES = re.compile(r"Input Parsing Errors?:(\n  `.*`: .+\.)+", re.DOTALL)
# A valid request takes the least of these: the smallest image.
COSTLY = ("width", "height", "num_images")
# Any JSON, with NaN, lone surrogates and huge integers. Without the integers that would be a large image or many steps.
TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
JUNK = st.recursive(
    st.none() | st.booleans() | st.floats() | TEXT | st.integers(max_value=1) | st.integers(min_value=10_000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def good_value(name: str, field: dict[str, Any], images: list[str], models: dict[str, Any]) -> st.SearchStrategy:
    """Return values that the schema of the field allows.

    images: files in base64 for the fields image and mask. models: the objects that fields hold, by name.
    """
    if "anyOf" in field:
        return st.one_of(*(good_value(name, choice, images, models) for choice in field["anyOf"]))
    if "$ref" in field:
        model = models[field["$ref"].split("/")[-1]]
        values = {key: good_value(key, each, images, models) for key, each in model["properties"].items()}
        always = {key: values.pop(key) for key in model["required"]}
        return st.fixed_dictionaries(always, optional=values)
    if field.get("type") == "array":
        each = good_value(name, field["items"], images, models)
        # One more than allowed is refused. Each image takes time.
        most = 2 if name == "image" else field["maxItems"] + 1
        return st.lists(each, min_size=field.get("minItems", 0), max_size=most)
    if "enum" in field:
        return st.sampled_from(field["enum"])
    if name in COSTLY:
        return st.just(field["minimum"])
    if name == "num_inference_steps":
        # At a few steps schedulers differ most, and each step takes time.
        return st.integers(field["minimum"], min(field["minimum"] + 3, field["maximum"]))
    if field["type"] == "integer":
        return st.integers(field["minimum"], field["maximum"])
    if field["type"] == "boolean":
        return st.booleans()
    if field["type"] == "number":
        return st.floats(field.get("minimum", field.get("exclusiveMinimum")), field["maximum"])
    if field["type"] == "string":
        text = st.text(min_size=field.get("minLength", 0), max_size=8)
        return text | st.sampled_from(images) if name in ("image", "mask") and images else text
    return st.none()


def bodies(schema: dict[str, Any], images: list[str]) -> st.SearchStrategy:
    """Return requests that the schema allows, most of them with some fields spoiled, and now and then none at all."""
    models = schema.get("$defs", {})
    values = {name: good_value(name, field, images, models) for name, field in schema["properties"].items()}
    names = st.sampled_from(sorted(values))
    always = {name: values.pop(name) for name in sorted({*schema["required"], *COSTLY, "num_inference_steps"})}
    request = st.fixed_dictionaries(always, optional=values)
    spoiled = st.dictionaries(names | TEXT, JUNK, min_size=1, max_size=2)
    kinds = [request, *[_both(request, spoiled)] * 2, JUNK]
    # From an image, with what may go with it.
    start = [name for name in ("strength", "seed", "output_format") if name in values]
    for field, more in (("image", start), ("mask", [*start, "mask_blur", "mask_padding"])):
        if field not in values:
            continue
        always = {**always, field: values[field]}
        good = st.fixed_dictionaries(always, optional={name: values[name] for name in more})
        spoiled = st.dictionaries(st.sampled_from(["image", "mask", *more]), JUNK, min_size=1, max_size=2)
        kinds += [good, _both(good, spoiled)]
    return st.one_of(*kinds)


def _both(body: st.SearchStrategy, more: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(lambda body, more: {**body, **more}, body, more)

"""The presets: `presets/NAME.yaml` on top of `families/NAME.yaml`. schema.py describes each key."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from catalog.schema import Accelerator, FineTune, Preset

ROOT = Path(__file__).resolve().parent.parent
# PyYAML's safe loaders. The one in C is eight times as fast; some builds lack it.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class CatalogError(ValueError):
    """The catalog has mistakes: one sentence for each."""


def merged(base: Any, more: Any, *path: str) -> Any:
    """Return base updated with more: mappings key by key.

    Replaced are the components of `published`, and the `files` of a repository, which are those of one commit.
    """
    match path:
        case ("published", _) | ("repos", _, "files"):
            return more
    if not isinstance(base, dict) or not isinstance(more, dict):
        return more
    return {**base, **{name: merged(base.get(name), more[name], *path, name) for name in more}}


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the files of the folder by name, each merged with the one that it is `like`."""
    said = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            said[path.stem] = dict(yaml.load(path.read_text("utf-8"), LOADER))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            wrong = " ".join(str(error).split())
            raise CatalogError(f"{folder.name}/{path.name}: not a YAML mapping: {wrong}.") from error

    def whole(name: str, file: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
        if name not in said or name in seen:
            raise CatalogError(f"{folder.name}/{file}.yaml: like: there is no {name!r}, or it is like itself.")
        own = dict(said[name])
        like = own.pop("like", None)
        return merged(whole(like, name, (*seen, name)), own) if like else own

    return {name: whole(name, name) for name in said}


def load(root: Path = ROOT) -> dict[str, Preset]:
    """Return the presets in the order of cookiecutter.json, new ones last. Raises CatalogError."""
    families, presets = read(root / "catalog" / "families"), read(root / "catalog" / "presets")
    memory = yaml.load((root / "catalog" / "memory.yaml").read_text("utf-8"), LOADER) or {}
    sizes = yaml.load((root / "catalog" / "full_size.yaml").read_text("utf-8"), LOADER)
    found, wrong, gpus = {}, [], accelerators(root)
    order = json.loads((root / "cookiecutter.json").read_text("utf-8"))["preset"]
    for name in sorted(presets, key=lambda name: (order.index(name) if name in order else len(order), name)):
        family = presets[name].get("family")
        if family not in families:
            raise CatalogError(f"presets/{name}.yaml: family is {family!r}: use one of {', '.join(families)}.")
        facts = merged(families[family], presets[name])
        # What is no name there is told by the schema.
        named = {part: sizes.get(str(size), size) for part, size in facts.get("full_size", {}).items()}
        try:
            whole = {**facts, "full_size": named, "memory": memory.get(name)}
            found[name] = fitted(name, Preset.model_validate(whole), gpus)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                where = ".".join(map(str, each["loc"]))
                wrong.append(f"presets/{name}.yaml: {where}{': ' if where else ''}{each['msg']}.")
    for name, preset in found.items():
        if preset.tested not in found:
            wrong.append(f"families/{preset.family}.yaml: tested is {preset.tested!r}: there is no such preset.")
        instead(found, name) if preset.own_components else None
    if wrong:
        raise CatalogError("\n".join(wrong))
    return found


def accelerators(root: Path = ROOT) -> dict[str, Accelerator]:
    said = yaml.load((root / "catalog" / "accelerators.yaml").read_text("utf-8"), LOADER)
    return {name: Accelerator.model_validate(facts) for name, facts in said.items()}


def fine_tunes(root: Path = ROOT) -> list[FineTune]:
    said = yaml.load((root / "catalog" / "fine_tunes.yaml").read_text("utf-8"), LOADER)
    return [FineTune.model_validate(each) for each in said]


def cheapest(preset: Preset, gpus: dict[str, Accelerator]) -> str | None:
    """Return the cheapest GPU on Baseten's list that holds an image of max_size x max_size; of equals the smallest.

    Or one that holds less, but the default size, and costs less than half: limits.max_pixels shrinks to that.
    """

    def holding(side: int) -> tuple[float, int, str] | None:
        fits = [
            (gpu.usd_per_hour, gpu.memory_gb, name)
            for name, gpu in gpus.items()
            if gpu.usd_per_hour and not gpu.on_request and gpu.holds(preset.needed(side**2), preset.dtype)
        ]
        return min(fits, default=None)

    whole, less = holding(preset.max_size), holding(preset.size)
    if less and (whole is None or 2 * less[0] < whole[0]):
        return less[2]
    return whole[2] if whole else None


def fitted(name: str, preset: Preset, gpus: dict[str, Accelerator]) -> Preset:
    """Return the preset with the most pixels that its GPU holds. Raises CatalogError if the default size has more."""
    for side in range(preset.max_size, preset.size - 1, -preset.size_multiple):
        if gpus[preset.accelerator].holds(preset.needed(side**2), preset.dtype):
            return preset.model_copy(update={"max_pixels": side**2})
    raise CatalogError(
        f"presets/{name}.yaml: accelerator is {preset.accelerator!r}: it does not hold an image of the default size, "
        f"use {cheapest(preset, gpus)}."
    )


def instead(presets: dict[str, Preset], name: str) -> str:
    """Return a preset with the same pipeline class that can serve a fine-tune."""
    for other, facts in presets.items():
        if facts.pipeline == presets[name].pipeline and not facts.own_components:
            return other
    raise CatalogError(f"presets/{name}.yaml: no preset of its family takes a fine-tune: add fine_tune_patterns.")

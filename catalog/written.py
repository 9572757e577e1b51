"""The files that `python -m catalog` writes:

cookiecutter.json        choices and their labels; the rest is written by hand
templates/catalog/       one file per preset, imported by a project's config.yaml and README.md
templates/tiny/          one file per preset, included by a project's tiny/pipeline.yaml
templates/version.jinja  the version in pyproject.toml, for a project's README
hooks/                   facts that the hooks check and print, as they cannot import templates
README.md, docs/         tables of presets and fine-tunes, what could not be confirmed, and the version to check out
docs/tuning.md           a project's page of that name, for one preset
"""

import functools
import json
import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jinja2 import DictLoader, Environment

from catalog import LOADER, ROOT, CatalogError, accelerators, fine_tunes, instead, load
from catalog.schema import READ_FROM_FILES, Accelerator, FineTune, Preset, Repo

SERVER_GB = 2  # estimated main memory beside the weights
RATES = (1, 5)  # GB/s
WEIGHTS = (".safetensors", ".gguf", ".bin", ".msgpack", ".onnx")
# The most used presets, shown in the README.
TOP = ("sdxl", "sdxl-turbo", "sdxl-lightning", "sd15", "sd3.5-medium", "sd3.5-large", "flux-schnell", "flux-dev")
TOP += ("z-image-turbo", "qwen-image-2512")
ON_GPU = ["GPU", "USD/h", "peak GB", "published"]
CHOICE = ["preset", "size", "steps", *ON_GPU, "most GB", "license", "gated"]
COST = ["preset", "download GB", *(f"at {rate} GB/s" for rate in RATES), "memory GB", "time per image"]
TUNING = "<<cookiecutter.model_name>>/docs/tuning.md"
TUNING_TITLE = """\
# Tune a model: fine-tunes, LoRAs, schedulers, compiling

Every generated project has this page for its own preset, as `docs/tuning.md`. This is the one for `sdxl`.
"""
# Keys that the emitted project does not use.
NOT_RENDERED = {"note", "published", "left_out", "full_size", "tiny", "tested", "alike", "source", "memory"}
TINY_HEADER = """\
# The pipeline that tiny/make.py makes, so that the tests need no weights: each component of the real one, with few and
# small layers. Other settings are as published, so the tests run the same code paths as the real model.
"""


class Plain(yaml.SafeDumper):
    """Writes repeated values in full, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def entry(preset: Preset) -> dict[str, Any]:
    """Return the facts that a project's config.yaml and README.md import."""
    facts = preset.model_dump(mode="json", exclude=NOT_RENDERED | {"repos"})
    repos = {name: repo.model_dump(exclude={"files"}, exclude_none=True) for name, repo in preset.repos.items()}
    memory = preset.memory.model_dump(include={"fixed", "per_megapixel", "per_lora"}) if preset.memory else None
    return {**facts, "takes_lora": preset.takes_lora, "gpu_memory_gb": memory, "repos": repos}


@functools.cache
def tokenizers() -> dict[str, Any]:
    """Return the files of each tokenizer of the tiny pipelines, by its class."""
    files: dict[str, Any] = yaml.load((ROOT / "catalog" / "tiny_tokenizers.yaml").read_text("utf-8"), LOADER)
    return files


def tiny(preset: Preset) -> dict[str, Any]:
    """Return the content of a project's tiny/pipeline.yaml."""
    published = dict(preset.published)
    found: dict[str, Any] = {"class_name": preset.pipeline, "model_index": published.pop("model_index", {})}
    found["scheduler"] = published.pop("scheduler")
    found["stored"] = published.pop("stored", {})
    elsewhere = published.pop("component_vae", None)
    found["left_out"] = {name: list(which) for name, which in preset.left_out.items()}
    made_by_makers = {name for name, repo in preset.repos.items() if repo.file}
    found["components"] = {
        name: {"class": part["class"], **published.pop(name, {}), **part} for name, part in preset.tiny.items()
    }
    for name in found["components"].keys() - made_by_makers:
        found["components"][name].pop("layout", None)
    classes = {part["class"] for part in preset.tiny.values()}
    found["tokenizers"] = {name: files for name, files in tokenizers().items() if name in classes}
    for name in sorted(name for name in classes - found["tokenizers"].keys() if name.endswith(READ_FROM_FILES)):
        raise CatalogError(f"presets of {preset.family}: tiny has a {name}: catalog/tiny_tokenizers.py makes none.")
    if published:
        raise CatalogError(f"presets of {preset.family}: published has {', '.join(published)}, but tiny does not.")
    # Replaces the pipeline's VAE where config.yaml takes it from another repository.
    if elsewhere is not None:
        found["from_elsewhere"] = {"vae": {"class": preset.tiny["vae"]["class"], **elsewhere, **preset.tiny["vae"]}}
    return found


def fetched(repo: Repo) -> dict[str, int | None]:
    """Return the files that the patterns match, with their bytes."""
    rules = [".*".join(map(re.escape, pattern.split("*"))) for pattern in repo.allow_patterns]
    return {file: size for file, size in repo.files.items() if any(re.fullmatch(rule, file) for rule in rules)}


def fetched_bytes(preset: Preset) -> tuple[int, list[str]]:
    """Return the bytes that the preset downloads, and the weight files of unknown size."""
    sizes = {
        f"{file} of {repo.repo_id}": size for repo in preset.repos.values() for file, size in fetched(repo).items()
    }
    unknown = [file for file, size in sizes.items() if size is None and file.split(" of ")[0].endswith(WEIGHTS)]
    return sum(size or 0 for size in sizes.values()), unknown


def rows_of(columns: list[str], cells: Iterable[list[str]]) -> str:
    """Return a table in Markdown."""
    rows = [columns, ["---"] * len(columns), *cells]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def linked(name: str, preset: Preset) -> str:
    return f"[`{name}`](https://huggingface.co/{preset.repos['pipeline'].repo_id})"


def table(presets: dict[str, Preset], gpus: dict[str, Accelerator]) -> str:
    cells = []
    for name, preset in presets.items():
        steps, gated = str(preset.num_inference_steps), "yes" if preset.gated else "no"
        on = [*on_gpu(preset, gpus), f"{preset.needs_gb:.1f}"]
        cells.append([linked(name, preset), f"{preset.size} px", steps, *on, preset.license, gated])
    return rows_of(CHOICE, cells)


def costs(presets: dict[str, Preset], gpus: dict[str, Accelerator]) -> str:
    cells = []
    for name, preset in presets.items():
        # diffusers holds a GGUF file in memory while loading it, in addition to the page cache.
        held = [repo.files[repo.file] or 0 for repo in preset.repos.values() if repo.file and repo.time_per_image]
        memory = math.ceil(preset.download_gb + sum(held) / 1e9 + SERVER_GB)
        too_small = memory > (gpus[preset.accelerator].instance_memory_gb or math.inf)
        total, unknown = fetched_bytes(preset)
        size = preset.download_gb if unknown else total / 1e9
        seconds = [f"{size / rate:.1f} s" for rate in RATES]
        slower = "".join(repo.time_per_image or "" for repo in preset.repos.values())
        download, held_gb = f"{'~' if unknown else ''}{size:.2f}", f"{memory}{' *' if too_small else ''}"
        cells.append([f"`{name}`", download, *seconds, held_gb, slower])
    return rows_of(COST, cells)


def on_gpu(preset: Preset, gpus: dict[str, Accelerator]) -> list[str]:
    """Return the GPU, what it costs an hour, and the peak of an image of the default size: predicted, and published."""
    price, memory = gpus[preset.accelerator].usd_per_hour, preset.memory
    published = memory.published if memory else None
    numbers = [price, memory.predicted if memory else None, published]
    found = [
        "" if number is None else f"{number:.{digits}f}" for number, digits in zip(numbers, (2, 1, 1), strict=True)
    ]
    return [preset.accelerator, *found]


def top(presets: dict[str, Preset], gpus: dict[str, Accelerator]) -> str:
    """Return the README's short table."""
    cells = []
    for name in TOP:
        preset = presets[name]
        numbers, gated = [str(preset.num_inference_steps), str(preset.download_gb)], "yes" if preset.gated else "no"
        cells.append([linked(name, preset), *numbers, *on_gpu(preset, gpus), preset.license, gated])
    return rows_of(["preset", "steps", "download GB", *ON_GPU, "license", "gated"], cells)


def unverified(presets: dict[str, Preset]) -> str:
    """Return one line for each pin that could not be fully confirmed."""
    repos = [(name, repo) for name, preset in presets.items() for repo in preset.repos.values() if repo.unverified]
    # List what presets share once, under the first of them.
    first = {(repo.repo_id, repo.unverified): name for name, repo in reversed(repos)}
    return "".join(f"* `{name}`: {said} ({repo_id}).\n" for (repo_id, said), name in reversed(first.items()))


def fine_tune_table(known: list[FineTune]) -> str:
    rows = ["| hf_repo_id | preset | _hf_variant | hf_revision | license | note |", "|" + " --- |" * 6]
    for each in known:
        link = f"[{each.repo_id}](https://huggingface.co/{each.repo_id})"
        cells = [link, f"`{each.preset}`", f"`{each.variant}`", f"`{each.revision}`", each.license, each.note]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def cookiecutter_json(text: str, presets: dict[str, Preset], gpus: dict[str, Accelerator]) -> str:
    """Return cookiecutter.json with the catalog's choices."""
    context = json.loads(text)
    prompts = context["__prompts__"]
    context["preset"] = list(presets)
    context["accelerator"] = ["preset", *gpus]
    prompts["preset"] = {"__prompt__": prompts["preset"]["__prompt__"]} | {
        name: f"{name}: {preset.label}, {preset.download_gb} GB, on {preset.accelerator}"
        for name, preset in presets.items()
    }
    prompts["accelerator"] = {name: prompts["accelerator"][name] for name in ("__prompt__", "preset")} | {
        name: f"{name}: {gpu.memory_gb} GB" + (f", refused: {gpu.unusable}" if gpu.unusable else "")
        for name, gpu in gpus.items()
    }
    return json.dumps(context, indent=2, ensure_ascii=False) + "\n"


def gpu_of_hooks(gpu: Accelerator) -> dict[str, Any]:
    facts = gpu.model_dump(include={"memory_gb", "bfloat16", "unusable"}, exclude_none=True)
    return {**facts, "usable_gb": gpu.usable_gb}


def facts_of_hooks(presets: dict[str, Preset], gpus: dict[str, Accelerator]) -> dict[str, dict[str, Any]]:
    """Return the facts about presets and accelerators for each hook."""
    checked = {
        name: {
            "needs_gb": preset.needs_gb,
            "bfloat16": preset.dtype == "bfloat16",
            "variants": preset.variant is not None,
            **(
                {"own_components": preset.own_components, "instead": instead(presets, name)}
                if preset.own_components
                else {}
            ),
        }
        for name, preset in presets.items()
    }
    printed = {
        name: {
            **preset.model_dump(
                include={"title", "accelerator", "download_gb", "gated", "variant", "demo", "license", "license_notice"}
            ),
            "repo_id": preset.repos["pipeline"].repo_id,
            "revision": preset.repos["pipeline"].revision,
        }
        for name, preset in presets.items()
    }
    memory = {name: gpu_of_hooks(gpu) for name, gpu in gpus.items()}
    return {
        "pre_gen_project": {"presets": checked, "accelerators": memory},
        "post_gen_project": {"presets": printed, "accelerators": memory},
    }


def with_facts(text: str, facts: dict[str, Any]) -> str:
    """Return the text of a hook with these facts, one preset per line."""
    lines = [
        f'"{kind}": {{\n'
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(each)}" for name, each in named.items())
        + "\n}"
        for kind, named in facts.items()
    ]
    block = "{" + ",\n".join(lines) + "}"
    return re.sub(r'(?<=\nFACTS_JSON = r"""\n).*?(?=\n""")', lambda _: block, text, count=1, flags=re.DOTALL)


def with_lists(text: str, lists: dict[str, str]) -> str:
    """Return the text of a page with each list inserted between its two comments, if it has them."""
    for name, content in lists.items():
        start, end = f"<!-- catalog: {name} -->\n", "<!-- end -->\n"
        before, found, after = text.partition(start)
        text = before + start + content + end + after.partition(end)[2] if found else text
    return text


def tuning(template: str, context: dict[str, Any], facts: str) -> str:
    """Return the page for the first preset. template: the page of the project; facts: what it imports."""
    answers = {name: value[0] if isinstance(value, list) else value for name, value in context.items()}
    loader = DictLoader({f"catalog/{answers['preset']}": facts})
    environment = Environment(**context["_jinja2_env_vars"], loader=loader, keep_trailing_newline=True)
    page = environment.from_string(template).render(cookiecutter=answers)
    return re.sub("^# .*\n", lambda _: TUNING_TITLE, page.lstrip(), count=1)


def outputs(root: Path = ROOT) -> dict[Path, str]:
    """Return the text of each file that follows from the catalog. Raises CatalogError."""
    presets, gpus = load(root), accelerators(root)
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    # A variable of cookiecutter.json would keep the old version under `cookiecutter --replay`.
    found = {root / "templates" / "version.jinja": f'<% set version = "{version}" %>\n'}
    for name, preset in presets.items():
        facts = json.dumps(entry(preset), indent=1)
        found[root / "templates" / "catalog" / name] = f"<% set null = none %>\n<% set preset = {facts} %>\n"
        described = yaml.dump(
            tiny(preset), Dumper=Plain, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
        )
        # Raw, as tokenizers have tokens such as <</w>.
        found[root / "templates" / "tiny" / f"{name}.yaml"] = f"<% raw %>{TINY_HEADER}{described}<% endraw %>\n"
        if re.search("<<|<#|#>|%>.*%>", facts) or "<%" in facts or "<%" in described:
            raise CatalogError(f"presets/{name}.yaml: it contains a template tag: <<, <% or <#.")
    context = root / "cookiecutter.json"
    found[context] = cookiecutter_json(context.read_text("utf-8"), presets, gpus)
    facts = found[root / "templates" / "catalog" / TOP[0]]
    page = tuning((root / TUNING).read_text("utf-8"), json.loads(found[context]), facts)
    found[root / "docs" / "tuning.md"] = page
    for hook, facts_of_hook in facts_of_hooks(presets, gpus).items():
        path = root / "hooks" / f"{hook}.py"
        found[path] = with_facts(path.read_text("utf-8"), facts_of_hook)
    lists = {"top": top(presets, gpus), "table": table(presets, gpus), "costs": costs(presets, gpus)}
    known = fine_tunes(root)
    lists["unverified"] = unverified(presets)
    lists["fine-tunes"] = fine_tune_table(known)
    unconfirmed = (f"* {each.repo_id}: {each.unverified}.\n" for each in known if each.unverified)
    lists["unverified fine-tunes"] = "".join(unconfirmed)
    for page in (root / "README.md", root / "docs" / "presets.md", root / "docs" / "fine-tunes.md"):
        text = with_lists(page.read_text("utf-8"), lists)
        found[page] = re.sub(r"--checkout v[\d.]+", f"--checkout v{version}", text)
    return found


def stale(found: dict[Path, str], root: Path = ROOT) -> list[Path]:
    """Return the files that are out of date."""
    written = [*(root / "templates").glob("catalog/*"), *(root / "templates").glob("tiny/*")]
    wrong = [path for path in written if path not in found]
    return wrong + [path for path, text in found.items() if not path.is_file() or path.read_text("utf-8") != text]

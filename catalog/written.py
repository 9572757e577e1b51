"""What is written from the catalog: `python -m catalog`.

cookiecutter.json      the choices and their labels; the rest of it is written by hand
templates/catalog/     all that config.yaml and README.md of a project import: a file for each preset
templates/tiny/        what a project's tiny/pipeline.yaml includes: the same
templates/version.jinja  the version in pyproject.toml, which a project's README names
hooks/                 the facts that the hooks check and print: they cannot import templates
README.md, docs/       the table of the presets, what could not be confirmed, and the version to check out
"""

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from catalog import ROOT, CatalogError, accelerators, instead, load
from catalog.schema import Accelerator, Preset, Repo

SERVER_GB = 2  # of main memory, beside the weights: an estimate
RATES = (1, 5)  # GB/s
WEIGHTS = (".safetensors", ".gguf", ".bin", ".msgpack", ".onnx")
# The most used: the README shows these.
TOP = ("sdxl", "sdxl-turbo", "sdxl-lightning", "sd15", "sd3.5-medium", "sd3.5-large", "flux-schnell", "flux-dev")
TOP += ("z-image-turbo", "qwen-image-2512")
COLUMNS = ["preset", "weights", "size", "steps", "download GB", *(f"at {rate} GB/s" for rate in RATES)]
COLUMNS += ["GPU", "memory GB", "time per image", "license", "gated"]
# What the emitted project has no use for.
NOT_RENDERED = {"note", "published", "left_out", "tiny", "tested", "source"}
TINY_HEADER = """\
# The pipeline that tiny/make.py makes, so that the tests need no weights: each component of the real one, in few and
# small layers. What the real files say beside sizes is as published, so what is tested runs as what is served does.
"""


class Plain(yaml.SafeDumper):
    """Writes what is the same twice, and not as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def entry(preset: Preset) -> dict[str, Any]:
    """Return what config.yaml and README.md of a project import."""
    facts = preset.model_dump(mode="json", exclude=NOT_RENDERED | {"repos"})
    repos = {name: repo.model_dump(exclude={"files"}, exclude_none=True) for name, repo in preset.repos.items()}
    return {**facts, "takes_lora": preset.takes_lora, "repos": repos}


def tiny(preset: Preset) -> dict[str, Any]:
    """Return what tiny/pipeline.yaml of a project says."""
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
    if published:
        raise CatalogError(f"presets of {preset.family}: published names {', '.join(published)}, and tiny does not.")
    # In place of the pipeline's own, where config.yaml takes it from another repository.
    if elsewhere is not None:
        found["from_elsewhere"] = {"vae": {"class": preset.tiny["vae"]["class"], **elsewhere, **preset.tiny["vae"]}}
    return found


def fetched(repo: Repo) -> dict[str, int | None]:
    """Return the files that the patterns fetch, and their bytes."""
    rules = [".*".join(map(re.escape, pattern.split("*"))) for pattern in repo.allow_patterns]
    return {file: size for file, size in repo.files.items() if any(re.fullmatch(rule, file) for rule in rules)}


def fetched_bytes(preset: Preset) -> tuple[int, list[str]]:
    """Return how many bytes the pins of the preset fetch, and for which weight files the size is not known."""
    sizes = {
        f"{file} of {repo.repo_id}": size for repo in preset.repos.values() for file, size in fetched(repo).items()
    }
    unknown = [file for file, size in sizes.items() if size is None and file.split(" of ")[0].endswith(WEIGHTS)]
    return sum(size or 0 for size in sizes.values()), unknown


def table(presets: dict[str, Preset], gpus: dict[str, Accelerator]) -> str:
    rows = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for name, preset in presets.items():
        # diffusers holds a GGUF file in memory while it loads it, beside the page cache.
        held = [repo.files[repo.file] or 0 for repo in preset.repos.values() if repo.file and repo.time_per_image]
        memory = math.ceil(preset.download_gb + sum(held) / 1e9 + SERVER_GB)
        too_small = memory > (gpus[preset.accelerator].instance_memory_gb or math.inf)
        total, unknown = fetched_bytes(preset)
        size = preset.download_gb if unknown else total / 1e9
        cells = [
            f"`{name}`",
            preset.repos["pipeline"].repo_id,
            f"{preset.size} px",
            str(preset.num_inference_steps),
            f"{'~' if unknown else ''}{size:.2f}",
            *(f"{size / rate:.1f} s" for rate in RATES),
            preset.accelerator,
            f"{memory}{' *' if too_small else ''}",
            "".join(repo.time_per_image or "" for repo in preset.repos.values()),
            preset.license,
            "yes" if preset.gated else "no",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def top(presets: dict[str, Preset]) -> str:
    """Return the README's short table."""
    rows = ["| preset | weights | steps | download GB | GPU | license | gated |", "|" + " --- |" * 7]
    for name in TOP:
        preset = presets[name]
        repo, gated = preset.repos["pipeline"].repo_id, "yes" if preset.gated else "no"
        cells = [
            f"`{name}`",
            repo,
            preset.num_inference_steps,
            preset.download_gb,
            preset.accelerator,
            preset.license,
            gated,
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows) + "\n"


def unverified(presets: dict[str, Preset]) -> str:
    """Return one line for each pin of which something could not be confirmed."""
    repos = [(name, repo) for name, preset in presets.items() for repo in preset.repos.values() if repo.unverified]
    # What a preset takes over from another one stands there.
    first = {(repo.repo_id, repo.unverified): name for name, repo in reversed(repos)}
    return "".join(f"* `{name}`: {said} ({repo_id}).\n" for (repo_id, said), name in reversed(first.items()))


def cookiecutter_json(text: str, presets: dict[str, Preset], gpus: dict[str, Accelerator]) -> str:
    """Return cookiecutter.json with the choices of the catalog in place of those in text."""
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


def facts_of_hooks(presets: dict[str, Preset], gpus: dict[str, Accelerator]) -> dict[str, dict[str, Any]]:
    """Return what each hook knows of the presets, and what both know of the accelerators."""
    checked = {
        name: {
            "needs_gb": round(preset.weights_gb + preset.activations_gb, 2),
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
    memory = {name: gpu.model_dump(exclude={"instance_memory_gb"}, exclude_none=True) for name, gpu in gpus.items()}
    return {
        "pre_gen_project": {"presets": checked, "accelerators": memory},
        "post_gen_project": {"presets": printed, "accelerators": memory},
    }


def with_facts(text: str, facts: dict[str, Any]) -> str:
    """Return the text of a hook with these facts, one preset a line."""
    lines = [
        f'"{kind}": {{\n'
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(each)}" for name, each in named.items())
        + "\n}"
        for kind, named in facts.items()
    ]
    block = "{" + ",\n".join(lines) + "}"
    return re.sub(r'(?<=\nFACTS_JSON = r"""\n).*?(?=\n""")', lambda _: block, text, count=1, flags=re.DOTALL)


def with_lists(text: str, lists: dict[str, str]) -> str:
    """Return the text of a page with each list between its two comments, where it has them."""
    for name, content in lists.items():
        start, end = f"<!-- catalog: {name} -->\n", "<!-- end -->\n"
        before, found, after = text.partition(start)
        text = before + start + content + end + after.partition(end)[2] if found else text
    return text


def outputs(root: Path = ROOT) -> dict[Path, str]:
    """Return the text of each file that is written from the catalog. Raises CatalogError."""
    presets, gpus = load(root), accelerators(root)
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    # A variable of cookiecutter.json would keep the old version under `cookiecutter --replay`.
    found = {root / "templates" / "version.jinja": f'<% set version = "{version}" %>\n'}
    for name, preset in presets.items():
        facts = json.dumps(entry(preset), indent=1)
        found[root / "templates" / "catalog" / name] = f"<% set null = none %>\n<% set preset = {facts} %>\n"
        described = yaml.dump(tiny(preset), Dumper=Plain, sort_keys=False, default_flow_style=None, width=100)
        found[root / "templates" / "tiny" / f"{name}.yaml"] = TINY_HEADER + described
        for path in list(found)[-2:]:
            if re.search("<<|<#|#>|%>.*%>", found[path]) or found[path].count("<%") > 2:
                raise CatalogError(f"presets/{name}.yaml: it holds a tag of the template: <<, <% or <#.")
    context = root / "cookiecutter.json"
    found[context] = cookiecutter_json(context.read_text("utf-8"), presets, gpus)
    for hook, facts_of_hook in facts_of_hooks(presets, gpus).items():
        path = root / "hooks" / f"{hook}.py"
        found[path] = with_facts(path.read_text("utf-8"), facts_of_hook)
    lists = {"top": top(presets), "table": table(presets, gpus), "unverified": unverified(presets)}
    for page in (root / "README.md", root / "docs" / "presets.md"):
        text = with_lists(page.read_text("utf-8"), lists)
        found[page] = re.sub(r"--checkout v[\d.]+", f"--checkout v{version}", text)
    return found


def stale(found: dict[Path, str], root: Path = ROOT) -> list[Path]:
    """Return the files that are not as the catalog says."""
    written = [*(root / "templates").glob("catalog/*"), *(root / "templates").glob("tiny/*")]
    wrong = [path for path in written if path not in found]
    return wrong + [path for path, text in found.items() if not path.is_file() or path.read_text("utf-8") != text]

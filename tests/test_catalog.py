"""The catalog: what its patterns fetch, what fits where, and that each entry is whole."""

import importlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    ACCELERATOR_FACTS,
    ACCELERATORS,
    CATALOG,
    DELIVERIES,
    FACTS,
    PRESETS,
    PROJECT,
    REPO_FILES,
    TEMPLATE,
    render_config,
)
from test_hooks import GOOD, hook

import catalog
from catalog import written
from catalog.schema import FineTune

WEIGHTS = (".safetensors", ".gguf", ".bin", ".msgpack", ".onnx")
REPOS = [(preset, name) for preset in PRESETS for name in CATALOG[preset]["repos"]]
# In float16, transformers keeps a layer of each block of T5 in float32: 24 of 10240 x 4096 numbers, in T5 1.1 XXL.
KEPT_OF_T5 = 24 * 10240 * 4096 * 2


def fetched_by_model_cache(patterns: list[str], files: dict[str, Any]) -> set[str]:
    """The rule of model_cache: only * is special, and it crosses /."""
    rules = [".*".join(re.escape(part) for part in pattern.split("*")) for pattern in patterns]
    return {file for file in files if any(re.fullmatch(rule, file) for rule in rules)}


def fetched_by_weights(patterns: list[str], files: dict[str, Any]) -> set[str]:
    """The rule of weights: * stays within a folder, ** crosses /."""
    rules = []
    for pattern in patterns:
        parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
        special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
        rules.append("".join(special.get(part, re.escape(part)) for part in parts))
    return {file for file in files if any(re.fullmatch(rule, file) for rule in rules)}


def test_the_two_rules_differ_where_baseten_says_so() -> None:
    files = {"a.safetensors": 1, "unet/a.safetensors": 1}
    assert fetched_by_model_cache(["*.safetensors"], files) == set(files)
    assert fetched_by_weights(["*.safetensors"], files) == {"a.safetensors"}
    assert fetched_by_weights(["**/*.safetensors"], files) == set(files)
    assert fetched_by_model_cache(["unet/"], files) == fetched_by_model_cache(["?.safetensors"], files) == set()


def needed_files(preset: str, name: str) -> set[str]:
    """Return what the pipeline reads of this repository, worked out without its patterns."""
    facts = CATALOG[preset]
    repo = facts["repos"][name]
    files = REPO_FILES[repo["repo_id"]]
    # A component's own repository has no variants, nor folders.
    variant = f".{facts['variant']}" if facts["variant"] and name == "pipeline" else ""
    weights = re.compile(rf"(diffusion_pytorch_)?model{re.escape(variant)}(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
    if name != "pipeline":
        if "component" not in repo:
            return {file for file in files if file.endswith(".safetensors")}
        return {repo["file"]} if "file" in repo else {f for f in files if f == "config.json" or weights.fullmatch(f)}
    needed = {"model_index.json"}
    for folder in FACTS[preset].components:
        inside = {file.split("/")[1] for file in files if file.startswith(f"{folder}/")}
        elsewhere = facts["repos"].get(folder)
        if elsewhere:
            # from_single_file takes the config from the pipeline's folder.
            inside = {"config.json"} if "file" in elsewhere else set()
        elif "config.json" in inside:
            inside = {file for file in inside if file == "config.json" or weights.fullmatch(file)}
        needed |= {f"{folder}/{file}" for file in inside}
    return needed


@pytest.mark.parametrize(("preset", "name"), REPOS)
def test_the_patterns_fetch_what_is_read_and_nothing_twice(preset: str, name: str) -> None:
    repo = CATALOG[preset]["repos"][name]
    files = REPO_FILES[repo["repo_id"]]
    fetched = fetched_by_model_cache(repo["allow_patterns"], files)
    assert fetched == fetched_by_weights(repo["allow_patterns"], files)
    needed = needed_files(preset, name)
    assert needed <= fetched
    # More may come, such as a generation_config.json, but no weights and nothing large.
    more = fetched - needed
    assert not [file for file in more if file.endswith(WEIGHTS)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_pattern_reads_the_same_in_both_rules(preset: str) -> None:
    for repo in CATALOG[preset]["repos"].values():
        for pattern in repo["allow_patterns"]:
            assert re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/\*)?", pattern), pattern


def fetched_sizes(repo: dict[str, Any]) -> dict[str, int | None]:
    files = REPO_FILES[repo["repo_id"]]
    return {file: files[file] for file in sorted(fetched_by_model_cache(repo["allow_patterns"], files))}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_download_is_as_large_as_the_catalog_says(preset: str) -> None:
    total, unknown = written.fetched_bytes(FACTS[preset])
    assert total / 1e9 < 1.01 * CATALOG[preset]["download_gb"]
    if unknown:
        pytest.skip(f"not listed anywhere: the sizes of {'; '.join(unknown)}. The network test asks the Hub")
    assert total / 1e9 == pytest.approx(CATALOG[preset]["download_gb"], rel=0.01)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_weights_on_the_gpu_are_as_large_as_the_catalog_says(preset: str) -> None:
    """An accelerator is refused by this number, so one that is too small would be out of memory in production."""
    facts, stored = CATALOG[preset], FACTS[preset].published.get("stored", {})
    # What is fetched, but for the half of each float32 number that load() drops, and LoRAs, which it fuses.
    size = facts["download_gb"] * 1e9
    for name, repo in facts["repos"].items():
        for file, fetched in fetched_sizes(repo).items():
            part = file.split("/")[0] if name == "pipeline" else name
            if "scale" in repo:
                size -= fetched or 0
            elif "float32" in (stored.get(part), stored.get(f"component_{part}") if name == "vae" else None):
                size -= (fetched or 0) / 2
    if FACTS[preset].reads_t5 and facts["dtype"] == "float16":
        size += KEPT_OF_T5
    assert facts["weights_gb"] == pytest.approx(size / 1e9, rel=0.02)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_gpu_and_the_largest_image_follow_from_the_memory(preset: str) -> None:
    facts = FACTS[preset]
    assert facts.memory, f"benchmarks/memory.py has not predicted it: make bench-memory PRESETS={preset}"
    assert facts.accelerator == catalog.cheapest(facts, ACCELERATOR_FACTS)
    gpu, side = ACCELERATOR_FACTS[facts.accelerator], math.isqrt(facts.max_pixels)
    assert facts.size <= side <= facts.max_size
    assert gpu.usable_gb >= facts.needs_gb
    assert side == facts.max_size or gpu.usable_gb < facts.needed((side + facts.size_multiple) ** 2)
    metadata = render_config(preset=preset).model_metadata
    assert metadata["pipeline"]["limits"]["max_pixels"] == facts.max_pixels
    memory = metadata["gpu_memory_gb"]
    assert memory["fixed"] + memory["per_megapixel"] * facts.max_pixels / 1e6 == pytest.approx(facts.needs_gb, abs=0.01)


@pytest.fixture(scope="module")
def memory_table() -> dict[str, dict[str, str]]:
    """The rows of MEMORY.md by preset."""
    table = (TEMPLATE / "benchmarks" / "MEMORY.md").read_text("utf-8").split("## Every preset")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_of_memory_is_what_the_catalog_says(memory_table: dict[str, dict[str, str]], preset: str) -> None:
    facts, row = FACTS[preset], memory_table.get(preset)
    assert facts.memory and row, f"MEMORY.md does not have it: make bench-memory PRESETS={preset}"
    assert (row["GPU"], row["at these"]) == (facts.accelerator, f"{facts.needs_gb:.2f}")
    assert float(row["megapixels"]) == pytest.approx(facts.max_pixels / 1e6, abs=0.01)
    assert float(row["weights"]) == pytest.approx(facts.weights_gb, rel=0.02)


def test_the_table_of_memory_has_no_other_preset(memory_table: dict[str, dict[str, str]]) -> None:
    assert list(memory_table) == PRESETS


def test_the_report_of_some_presets_replaces_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TEMPLATE / "benchmarks")
    memory = importlib.import_module("memory")
    report = (TEMPLATE / "benchmarks" / "MEMORY.md").read_text("utf-8")
    others = tuple(f"| {preset} |" for preset in PRESETS if preset != "sd15")
    alone = "\n".join(line for line in report.splitlines() if not line.startswith(others))
    row = re.compile(r"(?m)^\| sd15 \| [\d.]+ \| [\d.]+ \| ([\d.]+ \| ){5}.*\n")
    assert len(row.findall(report)) == 1
    for before in (row.sub("", report), row.sub("| sd15 | old |\n", report)):
        assert memory.with_rows(before, alone) == report


@pytest.mark.parametrize("preset", [name for name, facts in FACTS.items() if facts.memory and facts.memory.published])
def test_no_published_peak_is_above_what_a_gpu_must_have(preset: str) -> None:
    facts = FACTS[preset]
    assert facts.memory and facts.memory.published
    assert facts.needed(facts.size**2) > facts.memory.published
    # There all of T5 was in half precision.
    predicted = facts.memory.predicted - (KEPT_OF_T5 / 1e9 if facts.reads_t5 and facts.dtype == "float16" else 0)
    assert predicted == pytest.approx(facts.memory.published, rel=0.1)


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_accelerator_is_accepted_by_truss_or_too_small(preset: str, delivery: str) -> None:
    facts = CATALOG[preset]
    needed = FACTS[preset].needs_gb
    assert ACCELERATOR_FACTS[facts["accelerator"]].usable_gb >= needed
    for accelerator in ACCELERATORS:
        answers = {**GOOD, "preset": preset, "accelerator": accelerator, "weights": delivery}
        problems = hook("pre_gen_project").problems(answers)
        chosen = ACCELERATOR_FACTS[facts["accelerator"] if accelerator == "preset" else accelerator]
        if chosen.unusable:
            (sentence,) = problems
            assert chosen.unusable in sentence
            continue
        if not chosen.bfloat16 and facts["dtype"] == "bfloat16":
            (sentence,) = problems
            assert f"{preset} runs in bfloat16" in sentence
            continue
        if chosen.usable_gb < needed:
            (sentence,) = problems
            assert f"{preset} needs about" in sentence
            continue
        assert problems == []
        config = render_config(**answers)
        wanted = facts["accelerator"] if accelerator == "preset" else accelerator
        assert config.resources.accelerator.accelerator.value == wanted
        assert ("hf_access_token" in config.secrets) == facts["gated"]
        same_weights(config, facts, delivery)


def same_weights(config: Any, facts: dict[str, Any], delivery: str) -> None:
    """Both deliveries bring the same files of the same commits to the same paths."""
    if delivery == "model_cache":
        assert all(repo.use_volume for repo in config.model_cache.root)
        found = {
            f"/app/model_cache/{repo.volume_folder}": (repo.repo_id, repo.revision, repo.allow_patterns)
            for repo in config.model_cache.root
        }
    else:
        found = {
            source.mount_location: (*source.source.removeprefix("hf://").split("@"), source.allow_patterns)
            for source in config.weights.root
        }
        (pipeline,) = [s for s in config.weights.root if s.mount_location.endswith("/pipeline")]
        assert (pipeline.auth is not None) == facts["gated"]
        assert not facts["gated"] or pipeline.auth.auth_secret_name == "hf_access_token"
    assert found == {
        f"/app/model_cache/{name}": (repo["repo_id"], repo["revision"], repo["allow_patterns"])
        for name, repo in facts["repos"].items()
    }
    pipeline = config.model_metadata["pipeline"]
    loras = {name.removeprefix("lora-"): repo for name, repo in facts["repos"].items() if "scale" in repo}
    assert pipeline["loras"] == [{"name": name, "scale": loras[name]["scale"], "fused": True} for name in loras]
    assert pipeline["weight_files"] == {name: repo["allow_patterns"] for name, repo in facts["repos"].items()}
    copied = ("dtype", "variant", "load_kwargs", "call_kwargs", "scheduler", "negative_prompt", "image_to_image")
    copied += ("step_callback", "prompt_tokens", "inpaint", "reference_images")
    assert {name: pipeline[name] for name in copied} == {name: facts[name] for name in copied}
    assert pipeline["defaults"]["guidance_scale"] == facts["guidance_scale"]
    assert pipeline["limits"]["guidance_scale"] == facts["max_guidance_scale"]
    bounds = ("min_steps", "max_steps", "max_steps_per_strength", "max_size", "max_pixels", "size_multiple")
    assert {name: pipeline["limits"][name] for name in bounds} == {name: facts[name] for name in bounds}


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_requires_beside_the_others_is_in_its_config(preset: str) -> None:
    files = [repo.get("file", "") for repo in CATALOG[preset]["repos"].values()]
    required = render_config(preset=preset).requirements
    assert set(CATALOG[preset]["requirements"]) <= set(required)
    names = [pin.split("==")[0] for pin in required]
    assert len(set(names)) == len(names)
    assert ("gguf" in names) == any(file.endswith(".gguf") for file in files)


def test_everything_written_from_the_catalog_is_up_to_date() -> None:
    assert [path.name for path in written.stale(written.outputs())] == [], "Run `python -m catalog`."


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the catalog is read from and written to."""
    for name in ("catalog", "hooks", "templates", "docs", f"{PROJECT.name}/docs"):
        shutil.copytree(TEMPLATE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("cookiecutter.json", "README.md", "pyproject.toml"):
        shutil.copy2(TEMPLATE / name, tmp_path / name)
    return tmp_path


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new), "utf-8")


def test_a_new_preset_is_one_file_and_the_last_of_the_choices(copy: Path) -> None:
    sha = "d" * 40
    (copy / "catalog" / "presets" / "a-new-one.yaml").write_text(
        f"like: sd15\ntitle: A new one\nrepos: {{pipeline: {{repo_id: owner/new, revision: {sha}}}}}\n", "utf-8"
    )
    found = written.outputs(copy)
    context = json.loads(found[copy / "cookiecutter.json"])
    assert context["preset"] == [*PRESETS, "a-new-one"]
    assert context["__prompts__"]["preset"]["a-new-one"] == (
        "a-new-one: A new one: 512 px, 30 steps, open weights, 2.13 GB, on T4"
    )
    assert sha in found[copy / "templates" / "catalog" / "a-new-one"]
    assert "| [`a-new-one`](https://huggingface.co/owner/new) | 512 px |" in found[copy / "docs" / "presets.md"]
    changed = {path.relative_to(copy).as_posix() for path in written.stale(found, copy)}
    expected = {"templates/catalog/a-new-one", "templates/tiny/a-new-one.yaml", "cookiecutter.json"}
    assert changed == expected | {
        "hooks/pre_gen_project.py",
        "hooks/post_gen_project.py",
        "docs/presets.md",
    }


def test_a_preset_like_another_has_its_own_files(copy: Path) -> None:
    (copy / "catalog" / "presets" / "a-new-one.yaml").write_text(
        "like: sd15\nrepos: {pipeline: {repo_id: owner/new, files: {model_index.json: 1}}}\n", "utf-8"
    )
    new = catalog.load(copy)["a-new-one"].repos["pipeline"]
    assert new.files == {"model_index.json": 1}
    assert new.allow_patterns == FACTS["sd15"].repos["pipeline"].allow_patterns


def test_what_is_written_of_a_preset_that_is_gone_is_found(copy: Path) -> None:
    (copy / "catalog" / "presets" / "sd21.yaml").unlink()
    stale = written.stale(written.outputs(copy), copy)
    assert {copy / "templates" / "catalog" / "sd21", copy / "templates" / "tiny" / "sd21.yaml"} <= set(stale)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("family: stable-diffusion\n", "family: nothing\n", "presets/sd15.yaml: family is 'nothing': use one of "),
        ("family: stable-diffusion\n", "like: sd15\n", "presets/sd15.yaml: like: there is no 'sd15'"),
        ("family: stable-diffusion\n", "like: sd16\n", "presets/sd15.yaml: like: there is no 'sd16'"),
        ("title: ", "titel: ", "presets/sd15.yaml: title: Field required."),
        ("title: ", "steps: 4\ntitle: ", "presets/sd15.yaml: steps: Extra inputs are not permitted."),
        ("451f4fe16113bff5a5d2269ed5ad43b0592e9a14", "main", "repos.pipeline.revision: String should match pattern"),
        ("scheduler/*", "scheduler/**", "repos.pipeline.allow_patterns.1: String should match pattern"),
        ("size: 512", "size: 500", "presets/sd15.yaml: Value error, size, max_size: not a multiple of 8."),
        ("  pipeline:\n", "  unet:\n", "repos: the first is not pipeline."),
        ("title: ", "requirements: [gguf]\ntitle: ", "requirements.0: String should match pattern"),
        ("title: ", "title: [", "presets/sd15.yaml: not a YAML mapping: "),
        ("title: Stable", "title: << Stable", "it contains a template tag"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_file_and_key(copy: Path, old: str, new: str, sentence: str) -> None:
    change(copy / "catalog" / "presets" / "sd15.yaml", old, new)
    with pytest.raises(catalog.CatalogError, match=re.escape(sentence)):
        written.outputs(copy)


@pytest.mark.parametrize("known", catalog.fine_tunes(), ids=lambda known: known.repo_id)
def test_a_known_fine_tune_can_be_served_with_its_preset(known: FineTune) -> None:
    taken = [name for name, facts in FACTS.items() if facts.repos["pipeline"].repo_id == known.repo_id]
    assert taken == [], "now a preset: remove it from catalog/fine_tunes.yaml"
    answers = {"preset": known.preset, "hf_repo_id": known.repo_id, "hf_revision": known.revision}
    answers["_hf_variant"] = known.variant
    assert hook("pre_gen_project").problems({**GOOD, **answers}) == []
    config = render_config(**answers)
    (source,) = config.model_cache.root
    assert (source.repo_id, source.revision) == (known.repo_id, known.revision)
    ending = ".safetensors" if known.variant == "plain" else f".{known.variant}.safetensors"
    weights = [pattern for pattern in source.allow_patterns if pattern.endswith(".safetensors")]
    # Of each model of the preset, under the names that the fine-tune has, and in no other precision beside it.
    models = {name for name, part in FACTS[known.preset].tiny.items() if not part["class"].endswith("Tokenizer")}
    assert {pattern.split("/")[0] for pattern in weights} == models
    assert {pattern.split("/")[1].removeprefix("diffusion_pytorch_") for pattern in weights} == {f"model{ending}"}
    page = (TEMPLATE / "docs" / "fine-tunes.md").read_text("utf-8")
    assert f"| `{known.preset}` | `{known.variant}` | `{known.revision}` | {known.license} |" in page


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_fine_tune_takes_the_place_of_the_pipeline(delivery: str) -> None:
    answers = {"hf_repo_id": "owner/my-model", "hf_revision": "a" * 40, "weights": delivery}
    config = render_config(**answers)
    where = config.model_cache.root if delivery == "model_cache" else config.weights.root
    text = str(where[0])
    assert "owner/my-model" in text
    assert "a" * 40 in text
    assert "unet/diffusion_pytorch_model.safetensors" in where[0].allow_patterns
    assert "hf_access_token" in config.secrets
    # Its own VAE: the preset's is for the preset's weights.
    assert len(where) == 1
    assert {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"} <= set(where[0].allow_patterns)
    pipeline = config.model_metadata["pipeline"]
    assert pipeline["components"] == {}
    assert pipeline["weight_files"] == {"pipeline": where[0].allow_patterns}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_component_of_the_preset_is_the_fine_tunes_own_or_takes_none(preset: str) -> None:
    facts = CATALOG[preset]
    components = [repo for repo in facts["repos"].values() if "component" in repo]
    replaceable = ["fine_tune_patterns" in repo for repo in components]
    problems = hook("pre_gen_project").problems(
        {**GOOD, "preset": preset, "hf_repo_id": "owner/m", "hf_revision": "a" * 40}
    )
    assert bool(problems) == (not all(replaceable))
    if problems:
        # It names one that can.
        other = re.search(r"use (\S+) for that", problems[0])[1]
        assert CATALOG[other]["pipeline"] == facts["pipeline"]
        assert not FACTS[other].own_components
        return
    config = render_config(preset=preset, hf_repo_id="owner/m", hf_revision="a" * 40)
    patterns = config.model_cache.root[0].allow_patterns
    for component in FACTS[preset].components:
        assert any(pattern.startswith(f"{component}/") for pattern in patterns), component


@pytest.mark.parametrize(("variant", "name"), [("plain", "model.safetensors"), ("bf16", "model.bf16.safetensors")])
def test_a_fine_tune_may_have_other_file_names(variant: str, name: str) -> None:
    config = render_config(hf_repo_id="owner/m", hf_revision="a" * 40, _hf_variant=variant)
    (pipeline,) = config.model_cache.root
    assert f"text_encoder/{name}" in pipeline.allow_patterns
    assert f"vae/diffusion_pytorch_{name}" in pipeline.allow_patterns
    assert config.model_metadata["pipeline"]["variant"] == (None if variant == "plain" else variant)


def test_another_commit_of_the_preset() -> None:
    config = render_config(hf_revision="b" * 40)
    assert [repo.revision for repo in config.model_cache.root] == [
        "b" * 40,
        CATALOG["sdxl"]["repos"]["vae"]["revision"],
    ]

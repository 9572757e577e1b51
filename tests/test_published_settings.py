"""The tiny pipelines carry what the real repositories say of their parts."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CATALOG, FACTS, TEMPLATE, BakedProject
from platforms import PROJECT_PYTHON

PUBLISHED = {preset: facts.published for preset, facts in FACTS.items()}
FACTS = TEMPLATE / "benchmarks" / "configs"  # files of the real repositories
# The sizes: a tiny pipeline has fewer layers than are published.
COUNTS = {"transformer_layers_per_block", "reverse_transformer_layers_per_block", "dual_attention_layers"}
# Not components.
OTHER_KEYS = {"model_index", "stored", "component_vae"}
needs_the_projects_environment = pytest.mark.skipif(
    PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
)

# Makes the tiny pipeline of each project in the list, with what changes in its settings. Where something does, loads it
# as a user of diffusers would.
MAKE = """
import importlib.util, json, sys
from pathlib import Path
import yaml

for project, changes in json.loads(sys.argv[1]):
    folder = Path(project)
    spec = importlib.util.spec_from_file_location("tiny_pipeline", folder / "tiny" / "make.py")
    tiny_pipeline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_pipeline)
    settings = yaml.safe_load((folder / "config.yaml").read_text())["model_metadata"]["pipeline"]
    settings.update(changes)
    tiny_pipeline.make(folder / "made", settings)
    if changes:
        import diffusers

        pipeline = getattr(diffusers, settings["class_name"]).from_pretrained(
            folder / "made" / "pipeline", variant=settings["variant"], **settings["load_kwargs"]
        )
        names = sorted(name for name, part in pipeline.components.items() if part is not None)
        (folder / "made" / "loaded.json").write_text(json.dumps(names))
"""
WITHOUT_T5, OWN_VAE = "sd3-medium without T5", "a fine-tune of sdxl with a VAE of its own"
VAE_FILES = ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]


def facts(preset: str, file: str) -> dict[str, Any]:
    return json.loads((FACTS / preset / file).read_text("utf-8"))


def test_a_vae_from_elsewhere_has_its_own_settings() -> None:
    for preset, published in PUBLISHED.items():
        assert ("component_vae" in published) == ("vae" in CATALOG[preset]["repos"]), preset


@pytest.mark.parametrize("preset", ["sd15", "sdxl"])
def test_what_is_said_is_what_the_files_say(preset: str) -> None:
    published = PUBLISHED[preset]
    scheduler = facts(preset, "scheduler/scheduler_config.json")
    del scheduler["_diffusers_version"]
    assert published["scheduler"] == scheduler
    for name in set(published) - OTHER_KEYS - {"scheduler"}:
        file = "tokenizer_config.json" if name.startswith("tokenizer") else "config.json"
        said = facts(preset, f"{name}/{file}")
        assert published[name] == {key: said.get(key) for key in published[name]}, name
    # Nothing that the pipeline or the VAE decides by is left out.
    for key in ("force_upcast", "scaling_factor", "shift_factor", "use_quant_conv", "mid_block_add_attention"):
        assert (key in published["vae"]) == (key in facts(preset, "vae/config.json")), key
    index = facts(preset, "model_index.json")
    said = {key: value for key, value in index.items() if not key.startswith("_") and not isinstance(value, list)}
    assert published.get("model_index", {}) == {key: value for key, value in said.items() if value is not None}


@pytest.fixture(scope="module")
def tiny(bake: Callable[..., BakedProject], presets: list[str]) -> dict[str, Path]:
    """The tiny pipeline of each preset, and two that a deployer's changes ask for."""
    answers = {preset: {"preset": preset} for preset in presets}
    answers[WITHOUT_T5] = {"preset": "sd3-medium"}
    answers[OWN_VAE] = {"preset": "sdxl", "hf_repo_id": "owner/m", "hf_revision": "a" * 40}
    projects = {name: bake(**answer) for name, answer in answers.items()}
    files = {name: project.config["model_metadata"]["pipeline"]["weight_files"] for name, project in projects.items()}
    without_t5 = [name for name in files[WITHOUT_T5]["pipeline"] if not name.split("/")[0].endswith("_3")]
    changes = {
        WITHOUT_T5: {
            "load_kwargs": {"text_encoder_3": None, "tokenizer_3": None},
            "weight_files": {"pipeline": without_t5},
        },
        OWN_VAE: {"components": {}, "weight_files": {"pipeline": files[OWN_VAE]["pipeline"] + VAE_FILES}},
    }
    # In one process: the imports take longer than all of them.
    work = json.dumps([(str(project.path), changes.get(name, {})) for name, project in projects.items()])
    result = subprocess.run([PROJECT_PYTHON, "-c", MAKE, work], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {name: project.path / "made" for name, project in projects.items()}


# One test for all presets: more would be spread over processes, of which each would make them all.
@needs_the_projects_environment
def test_a_tiny_pipeline_carries_it(tiny: dict[str, Path], presets: list[str]) -> None:
    for preset in presets:
        published = PUBLISHED[preset]
        pipeline = tiny[preset] / "pipeline"
        assert json.loads((pipeline / "scheduler" / "scheduler_config.json").read_text()) == published["scheduler"]
        index = json.loads((pipeline / "model_index.json").read_text())
        assert published.get("model_index", {}).items() <= index.items(), preset
        parts = {name: (pipeline, value) for name, value in published.items() if name not in {*OTHER_KEYS, "scheduler"}}
        if "component_vae" in published:
            parts["vae"] = (tiny[preset], published["component_vae"])
        for name, (folder, options) in parts.items():
            file = "tokenizer_config.json" if name.startswith("tokenizer") else "config.json"
            own = tiny[preset] / name / file
            written = json.loads((own if own.is_file() else folder / name / file).read_text())
            # transformers always ties T5's embeddings, and reads the file's value as a sign of T5 1.1.
            kept = {key: value for key, value in options.items() if key not in {*COUNTS, "tie_word_embeddings"}}
            assert {key: written.get(key) for key in kept} == kept, (preset, name)
            assert not any(options.get(key) and not written.get(key) for key in COUNTS), (preset, name)
        for name, dtype in published.get("stored", {}).items():
            # A component that comes from elsewhere lies beside the pipeline.
            elsewhere = tiny[preset] / name.removeprefix("component_")
            assert dtypes_of(elsewhere if elsewhere.is_dir() else pipeline / name) == {dtype}, (preset, name)


def dtypes_of(folder: Path) -> set[str]:
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    headers = []
    for file in folder.glob("*.safetensors"):
        content = file.read_bytes()
        headers.append(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]))
    return {names[tensor["dtype"]] for header in headers for key, tensor in header.items() if key != "__metadata__"}


@needs_the_projects_environment
def test_stable_diffusion_3_without_t5(tiny: dict[str, Path]) -> None:
    folder = tiny[WITHOUT_T5]
    parts = {part.name for part in (folder / "pipeline").iterdir() if part.is_dir()}
    assert parts == {
        "scheduler",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "transformer",
        "vae",
    }
    assert set(json.loads((folder / "loaded.json").read_text())) == parts
    # The real one names it, whatever a deployer leaves out.
    index = json.loads((folder / "pipeline" / "model_index.json").read_text())
    assert index["text_encoder_3"] == ["transformers", "T5EncoderModel"]


@needs_the_projects_environment
def test_a_fine_tune_of_sdxl_with_a_vae_of_its_own(tiny: dict[str, Path]) -> None:
    folder = tiny[OWN_VAE]
    assert all((folder / "pipeline" / file).is_file() for file in VAE_FILES)
    assert not (folder / "vae").exists()
    assert json.loads((folder / "pipeline" / "vae" / "config.json").read_text())["force_upcast"] is True
    assert dtypes_of(folder / "pipeline" / "vae") == {"float16"}
    assert "vae" in json.loads((folder / "loaded.json").read_text())

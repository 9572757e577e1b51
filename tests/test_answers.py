"""Random answers give a project whose config has exactly them, or a refusal that leaves nothing behind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ACCELERATOR_FACTS, ALL, CATALOG, DELIVERIES, FACTS, PRESETS, TEMPLATE
from cookiecutter.main import cookiecutter
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_hooks import GOOD
from truss.base.truss_config import TrussConfig

BAKES = 200 if ALL else 40  # beside those of SPECIAL
ANSWERS = ("model_name", "preset", "accelerator", "weights", "hf_repo_id", "hf_revision", "_hf_variant")
# Words with a special meaning in YAML, Jinja, the shell or a file system.
SPECIAL = [
    *("yes", "no", "on", "null", "~", "1e3", "0x1F", "012", "1_000", ".inf", "2026-01-01", "12:30:45", "true", "="),
    *("- a", "a: b", "a #b", "&a", "*a", "!!python/object/apply:os.system [id]", "%TAG", "| x", "> x", "'", '"', "\\"),
    *("{{ 7 * 7 }}", "<< 7 * 7 >>", "<< cookiecutter.preset >>", "<% if 1 %>a<% endif %>", "<# a #>b", "<< 1 / 0 >>"),
    *('"""', "'''", "\n- x", "a\nmodel_name: b", "$(touch pwned)", "`touch pwned`", "; touch pwned", "\x00", "\u2028"),
    *("..", ".", "../evil", "../../evil", "a/b", "a/../../evil", "a/../b", "a//b", "a/", "-x", "é", "模型", "\u202e"),
    *("<<", "x" * 64, "x" * 65, "x" * 300, "x" * 5000),
]


def is_contained(text: str) -> bool:
    """A refused name is a folder for a moment. It must be one in the folder of this test."""
    return not text.startswith("/") and text.count("..") <= 3


HOSTILE = (st.sampled_from(SPECIAL) | st.text(max_size=80)).filter(is_contained)
COMMIT = st.text("0123456789abcdef", min_size=40, max_size=40)
REPO_ID = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_]{0,20}/[A-Za-z0-9][A-Za-z0-9_.]{0,20}[A-Za-z0-9]", fullmatch=True)
NAME = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?", fullmatch=True)
YAML_WORDS = st.sampled_from(["yes", "no", "null", "1e3", "0x1F", "012", "1_000", "true", "2026-01-01", "on", "0.10"])


@st.composite
def good_answers(draw: st.DrawFn) -> dict[str, str]:
    """Answers that must give a project."""
    preset = draw(st.sampled_from(PRESETS))
    facts = CATALOG[preset]
    usable = {n: gpu for n, gpu in ACCELERATOR_FACTS.items() if not gpu.unusable}
    if facts["dtype"] == "bfloat16":
        usable = {n: gpu for n, gpu in usable.items() if gpu.bfloat16}
    large_enough = [n for n, gpu in usable.items() if gpu.usable_gb >= FACTS[preset].needs_gb]
    variants = ["preset", "plain", "fp16", "bf16", "fp32"] if facts["variant"] else ["preset", "plain"]
    answers = {
        "model_name": draw(NAME | YAML_WORDS),
        "preset": preset,
        "accelerator": draw(st.sampled_from(["preset", *large_enough])),
        "weights": draw(st.sampled_from(DELIVERIES)),
        "hf_revision": draw(st.just("") | COMMIT),
        "_hf_variant": draw(st.sampled_from(variants)),
    }
    repo_id = draw(REPO_ID.filter(lambda text: ".." not in text))
    takes_one = all("fine_tune_patterns" in repo for repo in facts["repos"].values() if "component" in repo)
    fine_tune = answers["hf_revision"] and takes_one and draw(st.booleans())
    return {**answers, "hf_repo_id": repo_id if fine_tune else ""}


def expected_config(answers: dict[str, str]) -> dict[str, Any]:
    """Return what the config must say, worked out from the catalog."""
    facts = CATALOG[answers["preset"]]
    repos = {name: (repo["repo_id"], repo["revision"]) for name, repo in facts["repos"].items()}
    repo_id, revision = repos["pipeline"]
    repos["pipeline"] = (answers["hf_repo_id"] or repo_id, answers["hf_revision"] or revision)
    if answers["hf_repo_id"]:
        # It brings all of its components itself.
        repos = {name: repo for name, repo in repos.items() if "component" not in facts["repos"][name]}
    variant = answers["_hf_variant"]
    return {
        "model_name": answers["model_name"],
        "preset": answers["preset"],
        "accelerator": facts["accelerator"] if answers["accelerator"] == "preset" else answers["accelerator"],
        "weights": answers["weights"],
        "repos": repos,
        "variant": {"preset": None if answers["hf_repo_id"] else facts["variant"], "plain": None}.get(variant, variant),
    }


def found_config(project: Path) -> dict[str, Any]:
    """Return the same, as Truss reads it."""
    config = TrussConfig.from_yaml(project / "config.yaml")
    if config.model_cache.root:
        repos = {repo.volume_folder: (repo.repo_id, repo.revision) for repo in config.model_cache.root}
    else:
        sources = {Path(source.mount_location).name: source.source for source in config.weights.root}
        repos = {name: tuple(source.removeprefix("hf://").rsplit("@", 1)) for name, source in sources.items()}
    return {
        "model_name": config.model_name,
        "preset": config.model_metadata["tags"][1],
        "accelerator": config.resources.accelerator.accelerator.value,
        "weights": "model_cache" if config.model_cache.root else "weights",
        "repos": repos,
        "variant": config.model_metadata["pipeline"]["variant"],
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with room above the output folder for whatever escapes from it."""
    base = tmp_path_factory.mktemp("answers")
    (base / "up" / "up" / "out").mkdir(parents=True)
    return base


def understood(answers: dict[str, str]) -> dict[str, str]:
    """Return the answers as cookiecutter gave them to the template. It renders those that hold a tag of Jinja."""
    folder = Path(yaml.safe_load(Path(os.environ["COOKIECUTTER_CONFIG"]).read_text())["replay_dir"])
    context = json.loads((folder / f"{TEMPLATE.name}.json").read_text("utf-8"))["cookiecutter"]
    plain = {name: answer for name, answer in answers.items() if not any(tag in answer for tag in ("<<", "<%", "<#"))}
    assert {name: context[name] for name in plain} == plain
    return {name: context[name] for name in ANSWERS}


def each_special(test: Callable[..., None]) -> Callable[..., None]:
    """Try each special text where an answer is free text: together with BAKES more than 300."""
    good = {**{name: GOOD[name] for name in ANSWERS}, "hf_revision": "a" * 40}
    for text in SPECIAL:
        for field in ("model_name", "hf_repo_id"):
            test = example(good=good, hostile={field: text})(test)
    return test


@settings(max_examples=BAKES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(good=good_answers(), hostile=st.dictionaries(st.sampled_from(ANSWERS), HOSTILE, max_size=2))
@each_special
def test_a_project_says_the_answers_and_a_refusal_leaves_nothing(
    base: Path, good: dict[str, str], hostile: dict[str, str]
) -> None:
    answers, out = {**good, **hostile}, base / "up" / "up" / "out"
    untouched = [out.parent.parent, out.parent, out]
    try:
        project = Path(cookiecutter(str(TEMPLATE), no_input=True, extra_context=answers, output_dir=str(out)))
    except Exception as refusal:
        assert hostile, refusal
        assert sorted(base.rglob("*")) == untouched
        return
    try:
        assert found_config(project) == expected_config(understood(answers))
        assert sorted(entry for entry in base.rglob("*") if not entry.is_relative_to(project)) == untouched
    finally:
        shutil.rmtree(project)

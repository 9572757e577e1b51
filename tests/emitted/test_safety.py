"""The safety checker of docs/tuning.md: off by default, and what it refuses is an answer of its own."""

import fnmatch
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cold_start.weights import WeightsError
from conftest import ALL, FAMILIES, READMES, Make, Served
from prometheus_client import REGISTRY
from pydantic import ValidationError

SENTENCE = "The safety check refuses an image of this request: change the prompt or the seed."


def recipe(preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what docs/tuning.md adds to model_cache, and to the block of the pipeline."""
    part = READMES[preset].split("## A safety checker")[1].split("\n## ")[0]
    entry, files = (textwrap.dedent(block) for block in re.findall(r"```yaml\n(.*?)```", part, re.DOTALL))
    (added,) = yaml.safe_load(entry)
    folder, name = re.fullmatch(r"  (\w+): \*safety_files\nsafety: (\w+)\n", files).groups()
    return added, {"folder": folder, "name": name, "files": added["allow_patterns"]}


@pytest.fixture
def with_safety(tiny: Any, settings_of: Make, copy_of: Callable[[str], Path]) -> Callable[..., Any]:
    folders: dict[str, Path] = {}

    def settings(preset: str, threshold: float) -> Any:
        added, block = recipe(preset)
        assert added["volume_folder"] == block["folder"] == block["name"]
        folder = folders[preset] = folders.get(preset) or copy_of(preset)
        tiny.make_safety_checker(folder / block["name"], threshold)
        plain = settings_of(preset, folder)
        files = {**plain.weight_files, block["folder"]: block["files"]}
        return settings_of(preset, folder, safety=block["name"], weight_files=files)

    return settings


@pytest.mark.parametrize("preset", FAMILIES if ALL else ["sd15", "flux-schnell"])
def test_what_it_refuses_is_an_answer_of_its_own(
    preset: str, with_safety: Callable[..., Any], settings_of: Make, serve: Callable[..., Served]
) -> None:
    allows, refuses = serve(with_safety(preset, 2.0)), serve(with_safety(preset, -2.0))
    assert allows.image() == serve(settings_of(preset)).image()

    def count() -> float:
        return REGISTRY.get_sample_value("image_requests_total", {"status": "422"}) or 0

    before = count()
    answer = refuses.ask()
    assert (answer.status_code, json.loads(answer.body)) == (422, {"error": SENTENCE})
    assert count() == before + 1
    assert refuses.healthy()


def test_the_recipe_caches_what_it_reads(tiny: Any, tmp_path: Path) -> None:
    added, block = recipe("sd15")
    tiny.make_safety_checker(tmp_path)
    made = [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()]
    # The pinned repository names them so, and has others beside them.
    assert all(fnmatch.filter(made, pattern) for pattern in block["files"])
    assert {file for pattern in block["files"] for file in fnmatch.filter(made, pattern)} == set(made)
    assert re.fullmatch("[0-9a-f]{40}", added["revision"])


def test_one_that_lacks_a_tensor_or_is_not_cached_is_a_sentence(
    with_safety: Callable[..., Any], settings_of: Make, serve: Callable[..., Served]
) -> None:
    settings = with_safety("sd15", 2.0)
    file = Path(settings.weights_dir) / "safety" / "safety_checker" / "model.fp16.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"visual_projection.weight"', b'"visual_projection.weighs"'))
    with pytest.raises(
        WeightsError, match=r"safety_checker cannot be read .*: no file has its tensor visual_projection"
    ):
        serve(settings)
    with pytest.raises(ValidationError, match="weight_files lacks safety"):
        settings_of("sd15", safety="safety")


def test_off_it_reads_nothing(settings_of: Make, serve: Callable[..., Served]) -> None:
    served = serve(settings_of("sd15"))
    assert served.settings.safety is None
    assert not served.model._is_unsafe(None)


def test_the_images_that_nobody_gets_are_not_looked_at(
    with_safety: Callable[..., Any], serve: Callable[..., Served]
) -> None:
    served = serve(with_safety("sd15", -2.0).model_copy(update={"warm_up": True}))
    # As after a request for which the model made NaN.
    served.model._usual_image(64, 64)
    assert served.healthy()

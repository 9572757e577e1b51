"""The safety checker of docs/tuning.md: off by default, and what it refuses is an answer of its own."""

import fnmatch
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cold_start.weights import WeightsError
from conftest import ALL, FAMILIES, PROJECT, READMES, Make, Served
from PIL import Image
from prometheus_client import REGISTRY
from pydantic import ValidationError
from test_progress import told

SENTENCE = "The safety check refuses an image of this request: change the prompt or the seed."


def recipe(preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Paste what docs/tuning.md says. Return the entry of model_cache, and the block of the pipeline."""
    part = READMES[preset].split("## A safety checker")[1].split("\n## ")[0]
    entry, files, name = re.findall(r"```yaml\n(.*?)```", part, re.DOTALL)
    text = (PROJECT / "config.yaml").read_text("utf-8")
    for place, pasted in (("\n# load() reads", f"{entry}\n# load() reads"), ("    safety: null", name.rstrip("\n"))):
        assert text.count(place) == 1
        text = text.replace(place, pasted)
    last = [line for line in text.split("    components:")[0].splitlines() if line.startswith("      ")][-1]
    text = text.replace(f"{last}\n    components:", f"{last}\n{files}    components:")
    config = yaml.safe_load(text)
    return config["model_cache"][-1], config["model_metadata"]["pipeline"]


@pytest.fixture
def with_safety(tiny: Any, settings_of: Make, copy_of: Callable[[str], Path]) -> Callable[..., Any]:
    folders: dict[str, Path] = {}

    def settings(preset: str, threshold: float) -> Any:
        added, block = recipe(preset)
        assert added["volume_folder"] == block["safety"]
        assert added["allow_patterns"] == block["weight_files"][block["safety"]]
        folder = folders[preset] = folders.get(preset) or copy_of(preset)
        tiny.make_safety_checker(folder / block["safety"], threshold)
        files = {**settings_of(preset, folder).weight_files, block["safety"]: added["allow_patterns"]}
        return settings_of(preset, folder, safety=block["safety"], weight_files=files)

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


def test_one_of_several_is_enough_and_a_stream_ends_in_an_error(
    with_safety: Callable[..., Any], serve: Callable[..., Served]
) -> None:
    served = serve(with_safety("sd15", 2.0))
    seen: list[Any] = []
    served.model._is_unsafe = lambda image: bool(seen.append(image)) or len(seen) == 2
    assert served.ask(num_images=3).status_code == 422
    seen.clear()
    *_, (last, data) = told(served, num_images=2)
    assert (last, data) == ("error", {"error": SENTENCE, "status": 422})


def test_the_ends_of_a_long_image_are_looked_at_too(
    with_safety: Callable[..., Any], serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    served, seen = serve(with_safety("sd15", 2.0)), []
    monkeypatch.setattr(
        StableDiffusionSafetyChecker,
        "forward",
        lambda self, clip_input, images: seen.append(clip_input) or (images, [False]),
    )
    for color in ("black", "white"):
        image = Image.new("RGB", (640, 64), "gray")
        image.paste(color, (0, 0, 64, 64))
        assert not served.model._is_unsafe(image)
    assert (seen[0] != seen[1]).any()


def test_the_recipe_caches_what_it_reads(tiny: Any, tmp_path: Path) -> None:
    added, _ = recipe("sd15")
    tiny.make_safety_checker(tmp_path)
    made = [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()]
    # The pinned repository names them so, and has others beside them.
    assert all(fnmatch.filter(made, pattern) for pattern in added["allow_patterns"])
    assert {file for pattern in added["allow_patterns"] for file in fnmatch.filter(made, pattern)} == set(made)
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
    with pytest.raises(WeightsError, match=r"feature_extractor cannot be read from "):
        serve(without(with_safety("sd15", 2.0), "feature_extractor"))
    with pytest.raises(WeightsError, match=r"safety_checker cannot be read from "):
        serve(without(with_safety("sd15", 2.0), "safety_checker"))
    with pytest.raises(ValidationError, match="weight_files lacks safety"):
        settings_of("sd15", safety="safety")


def without(settings: Any, folder: str) -> Any:
    """Take the folder away, and its patterns."""
    shutil.rmtree(Path(settings.weights_dir) / "safety" / folder)
    left = [pattern for pattern in settings.weight_files["safety"] if not pattern.startswith(folder)]
    return settings.model_copy(update={"weight_files": {**settings.weight_files, "safety": left}})


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

"""Bakes of the template, and its axes read from cookiecutter.json."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).resolve().parent.parent
PROJECT = TEMPLATE / "<<cookiecutter.model_name>>"
CONTEXT = json.loads((TEMPLATE / "cookiecutter.json").read_text("utf-8"))
PRESETS = CONTEXT["preset"]
ACCELERATORS = CONTEXT["accelerator"]


@dataclasses.dataclass(frozen=True)
class BakedProject:
    """A project that the template emitted."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.path / "config.yaml").read_text("utf-8"))

    def files(self) -> dict[str, bytes]:
        return {
            file.relative_to(self.path).as_posix(): file.read_bytes()
            for file in sorted(self.path.rglob("*"))
            if file.is_file()
        }


@pytest.fixture(scope="session", autouse=True)
def _no_user_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The user's own cookiecutter settings must not decide what the tests bake."""
    folder = tmp_path_factory.mktemp("cookiecutter")
    settings = folder / "config.yaml"
    settings.write_text(yaml.safe_dump({"cookiecutters_dir": str(folder), "replay_dir": str(folder / "replay")}))
    os.environ["COOKIECUTTER_CONFIG"] = str(settings)


@pytest.fixture(scope="session")
def bake(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BakedProject]:
    def _bake(template: str | Path = TEMPLATE, **answers: str) -> BakedProject:
        folder = tmp_path_factory.mktemp("bake")
        return BakedProject(Path(cookiecutter(str(template), no_input=True, extra_context=answers, output_dir=folder)))

    return _bake


@pytest.fixture(scope="session", params=PRESETS)
def preset_project(request: pytest.FixtureRequest, bake: Callable[..., BakedProject]) -> tuple[str, BakedProject]:
    return request.param, bake(preset=request.param)

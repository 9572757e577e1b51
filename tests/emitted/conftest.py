"""Tests of the emitted model/, run in the environment of the emitted project: see tests/test_emitted_model.py.

One process reads the tiny pipelines of all families, so the imports are paid for once.
"""

import base64
import contextlib
import functools
import importlib.util
import inspect
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from PIL import Image

TEMPLATE = Path(__file__).resolve().parents[2]
PROJECT = Path(os.environ["EMITTED_PROJECT"])
# Of the template: the project, whose preset cannot load it, holds none.
DEMO = TEMPLATE / "<<cookiecutter.model_name>>" / "tiny" / "demo"
# The block model_metadata.pipeline of each preset.
BLOCKS = json.loads(Path(os.environ["PIPELINE_BLOCKS"]).read_text("utf-8"))
READMES = json.loads(Path(os.environ["READMES"]).read_text("utf-8"))
# `make test-all`: what finds rare things, and takes long.
ALL = "TEST_ALL" in os.environ
sys.path[:0] = [str(PROJECT), str(PROJECT / "packages"), str(TEMPLATE)]

from pipeline_settings import Settings  # noqa: E402

import catalog  # noqa: E402
from catalog.written import tiny as tiny_of  # noqa: E402

FACTS = catalog.load()
# One preset of each. `make test-all` adds those that are like another one.
TESTED = [preset for preset in reversed(BLOCKS) if ALL or not FACTS[preset].alike]
FAMILIES = list({BLOCKS[preset]["class_name"]: preset for preset in TESTED}.values())
TINY = {preset: tiny_of(facts) for preset, facts in FACTS.items()}


def _tiny_pipeline() -> Any:
    spec = importlib.util.spec_from_file_location("tiny_pipeline", PROJECT / "tiny" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.DEMO = DEMO
    return module


def text_of(image: Image.Image, file_format: str = "PNG", **options: Any) -> str:
    """Return the file in base64, as requests bring it."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def pixels_of(text: str) -> numpy.ndarray:
    """Return the levels, [height, width, 3], of an image in base64, as answers hold it."""
    return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


GRAY = text_of(Image.new("RGB", (64, 64), "gray"))


@pytest.fixture(scope="session")
def tiny() -> Any:
    return _tiny_pipeline()


Make = Callable[..., Settings]


@pytest.fixture(scope="session")
def weights(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the folder of a preset's tiny weights, or of the demo's, which are trained. Nobody writes to it."""

    @functools.cache
    def folder(preset: str, trained: bool = False) -> Path:
        made = tmp_path_factory.mktemp(preset)
        tiny.make(made, BLOCKS[preset], TINY[preset], trained)
        return made

    return folder


@pytest.fixture
def copy_of(weights: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return what copies a preset's tiny weights, for a test to change."""
    return lambda preset: Path(shutil.copytree(weights(preset), tmp_path / "weights"))


@pytest.fixture(scope="session")
def settings_of(weights: Callable[[str], Path]) -> Make:
    """Return the settings of a preset on its tiny weights, in the dtype that it has on a GPU, with short prompts.

    Two families run in bfloat16 instead: on a CPU, float16 takes twice (Stable Diffusion 3) and seven times
    (PixArt-Sigma) as long. test_simulated_gpu.py has their real dtype.
    """

    import diffusers  # not above: test_lean_imports.py imports it in its own way

    def settings(preset: str, folder: Path | None = None, **changes: Any) -> Settings:
        block = {**BLOCKS[preset], "cpu_dtype": BLOCKS[preset]["dtype"], "weights_dir": str(folder or weights(preset))}
        if block["class_name"] in ("PixArtSigmaPipeline", "StableDiffusion3Pipeline"):
            block["cpu_dtype"] = "bfloat16"
        if "max_sequence_length" in inspect.signature(getattr(diffusers, block["class_name"]).__call__).parameters:
            block["call_kwargs"] = {**block["call_kwargs"], "max_sequence_length": 64}
        # The image that a fault is judged by has the default size.
        block["defaults"] = {**block["defaults"], "width": 64, "height": 64}
        return Settings.model_validate({**block, **changes})

    return settings


class Request:
    """What predict() needs of Truss's request."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self.state = SimpleNamespace(watch_disconnect=self._watch)

    @contextlib.contextmanager
    def _watch(self) -> Any:
        yield self.left


class Served:
    """A loaded model, asked as Truss asks it."""

    def __init__(self, settings: Settings) -> None:
        from model.model import Model
        from model.request import request_model

        self.settings = settings
        self.request = request_model(settings)
        self.model = Model(SimpleNamespace(block_until_download_complete=lambda: None), settings)
        self.model.load()

    @property
    def pipeline(self) -> Any:
        return self.model._pipelines[None]

    @property
    def masked(self) -> Any:
        """The pipeline for masks."""
        return self.model._pipelines[self.settings.inpaint]

    def ask(self, **body: Any) -> Any:
        small = {"prompt": "a red house", "num_inference_steps": 4, "width": 64, "height": 64, "seed": 0}
        small |= {"image": GRAY} if self.settings.needs_image else {}
        if not self.settings.negative_prompt:
            small["guidance_scale"] = self.settings.defaults.guidance_scale
        return self.model.predict(self.request(**{**small, **body}), Request())

    def image(self, **body: Any) -> str:
        return self.ask(**body).images[0].image

    def healthy(self) -> bool:
        import asyncio

        return asyncio.run(self.model.is_healthy())


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], Served]:
    return serve_with(monkeypatch)


def serve_with(patch: pytest.MonkeyPatch, small: bool = True) -> Callable[[Settings], Served]:
    """Return what loads a model, whose settings stay until patch is undone. small: references are scaled to little."""
    import prometheus_client
    from cold_start import read_ahead

    # Each model registers its gauge, and there are many in this process.
    patch.setattr(prometheus_client.Gauge, "__init__", _with_own_registry(prometheus_client.Gauge.__init__))
    patch.setattr(read_ahead, "begin", lambda *_: lambda: None)

    def serve(settings: Settings) -> Served:
        served = Served(settings)
        if small and settings.reference_images:
            _make_references_small(patch)
        return served

    return serve


def _make_references_small(patch: pytest.MonkeyPatch) -> None:
    """Two pipelines scale what they get to a megapixel: here to less."""
    from diffusers.pipelines.flux import pipeline_flux_kontext, pipeline_flux_kontext_inpaint
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus

    patch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)
    patch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", 64 * 64)
    for module in (pipeline_flux_kontext, pipeline_flux_kontext_inpaint):
        patch.setattr(module, "PREFERRED_KONTEXT_RESOLUTIONS", [(64, 64), (64, 128), (128, 64)])


def _with_own_registry(init: Any) -> Any:
    import prometheus_client

    return lambda self, *args, **more: init(self, *args, **{**more, "registry": prometheus_client.CollectorRegistry()})

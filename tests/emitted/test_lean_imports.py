"""A start without PyTorch's compiler: the images are the same, nothing of the stand-ins is left, and nothing waits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import BLOCKS, FAMILIES

PACKED = [
    name
    for name, block in BLOCKS.items()
    if any((part["file"] or "").endswith("gguf") for part in block["components"].values())
]
# With LoRAs that are fused, too.
PRESETS = list(dict.fromkeys([*FAMILIES, *PACKED, "sdxl-lightning", "sd15-lcm"]))
# What a process that has imported nothing yet runs first.
BEGIN = """
import importlib, json, logging, sys, tempfile
from pathlib import Path

import pytest
from conftest import BLOCKS, TINY, _tiny_pipeline, serve_with, text_of
from PIL import Image
from cold_start import lean_imports
from pipeline_settings import Settings

WITHOUT = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor")
logging.basicConfig(format="LOG %(name)s: %(message)s", stream=sys.stderr)
serve = serve_with(pytest.MonkeyPatch())
sources = set()  # those of transformers' models that are read

def note(event, arguments):
    if event == "open" and "/transformers/models/" in (name := str(arguments[0])) and name.endswith(".py"):
        sources.add(name)

sys.addaudithook(note)

def settings_of(preset, folder):
    block = {**BLOCKS[preset], "cpu_dtype": BLOCKS[preset]["dtype"], "weights_dir": folder}
    block["defaults"] = {**block["defaults"], "width": 64, "height": 64}
    return Settings.model_validate(block)

def bodies(settings):
    image, mask = text_of(Image.new("RGB", (64, 64), "orange")), text_of(Image.new("L", (64, 64), 255))
    few = {"num_inference_steps": max(2, settings.limits.min_steps)}
    asked = [few, {**few, "output_format": "jpeg"}, {**few, "output_format": "webp"}]
    asked += [{"image": image}] if settings.image_to_image or settings.reference_images else []
    return asked + ([{"image": image, "mask": mask}] if settings.inpaint else [])

def left():
    return sorted({
        name
        for module in list(sys.modules.values())
        if module not in (lean_imports, sys.modules["__main__"])
        for name, value in list(getattr(module, "__dict__", {}).items())
        if isinstance(value, lean_imports._StandIn) or getattr(value, "__module__", "") == lean_imports.__name__
    } | {name for name, module in sys.modules.items() if isinstance(module, lean_imports._StandIn)})
"""
# torch's own attribute says that nothing is compiled, maybe_allow_in_graph gives back what it gets, as diffusers has it
# without a compiler, and the others are the real ones when they are used.
REMAINS = ["TransformGetItemToIndex", "_dynamo", "_package_map", "maybe_allow_in_graph"]
# As where config.yaml says compile.
COMPILES = """
import_diffusers = lean_imports.import_diffusers
lean_imports.import_diffusers = lambda name, plainly: import_diffusers(name, plainly=True)
"""
# A server loads once, and this process each family.
ONCE_MORE = """
import_diffusers = lean_imports.import_diffusers
def once_more(name, plainly):
    if "diffusers" in sys.modules:
        lean_imports._stand_in()
    import_diffusers(name, plainly)
lean_imports.import_diffusers = once_more
"""
ALL = """
told = {}
for preset, folder in json.loads(sys.argv[1]).items():
    settings = settings_of(preset, folder)
    served = serve(settings)
    before = set(sys.modules)
    images = [served.image(**body) for body in bodies(settings)]
    new = sorted(set(sys.modules) - before)
    told[preset] = {"images": images, "new": new, "compiler": [name for name in WITHOUT if name in sys.modules]}
"""
AFTERWARDS = """
told["sources"] = len(sources)
import torch
from transformers import masking_utils

stand_in, remains = torch._dynamo, left()
assert not isinstance(served.pipeline, stand_in.eval_frame.OptimizedModule) and not stand_in.is_compiling()
assert stand_in.config is importlib.import_module("torch._dynamo.config") and torch._dynamo is not stand_in
assert stand_in.eval_frame is torch._dynamo.eval_frame and stand_in.disable is torch._dynamo.disable
compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager")
assert isinstance(compiled, stand_in.eval_frame.OptimizedModule) and compiled(torch.ones(2)).shape == (2,)
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
assert isinstance(masking_utils.TransformGetItemToIndex(), TransformGetItemToIndex)
told |= {"left": remains, "again": served.image(**body) == images[-1]}
"""


def run(code: str, *arguments: str) -> tuple[Any, str]:
    """Return what code told, and its log."""
    code = BEGIN + code + "\nprint(json.dumps(told))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TQDM_DISABLE": "1"}
    result = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1]), "\n".join(
        line for line in result.stderr.splitlines() if line.startswith("LOG uvicorn: ")
    )


@pytest.fixture(scope="module")
def folders(weights: Any) -> str:
    return json.dumps({preset: str(weights(preset)) for preset in PRESETS})


@pytest.fixture(scope="module")
def with_compiler(folders: str) -> Any:
    told, _ = run(COMPILES + ALL, folders)
    assert all("torch._dynamo" in each["compiler"] for each in told.values())
    return told


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The names of transformers, as the image build keeps them: code that names their file."""
    names = f"lean_imports.NAMES = Path({str(tmp_path_factory.mktemp('kept') / 'names')!r})\n"
    run(names + "lean_imports.keep_names()\ntold = None")
    return names


def test_every_family_makes_the_same_images_without_the_compiler(folders: str, with_compiler: Any, kept: str) -> None:
    body = AFTERWARDS.replace("**body", "**bodies(settings)[-1]")
    told, log = run(kept + ONCE_MORE + ALL + body, folders)
    remains, again, sources = told.pop("left"), told.pop("again"), told.pop("sources")
    assert log == "" and again
    # Of the packages that these presets import. transformers has 1,638.
    assert 0 < sources < 200
    # An upgrade may bring them back: then look at what asks for them.
    assert {preset: each["compiler"] for preset, each in told.items()} == {preset: [] for preset in PRESETS}
    for preset in PRESETS:
        assert told[preset]["images"] == with_compiler[preset]["images"], preset
    assert remains == REMAINS


def test_with_the_compiler_the_names_that_were_kept_count_too(kept: str) -> None:
    told, log = run(kept + WITH_COMPILER)
    assert log == ""
    assert 0 < told["sources"] < 200
    assert told["compiler"] and told["left"] == []


@pytest.mark.parametrize("preset", PRESETS)
def test_the_first_requests_import_nothing(preset: str, with_compiler: Any) -> None:
    assert with_compiler[preset]["new"] == []


FAULTS = {
    "at last": "real = lean_imports._import\nlean_imports._import = lambda name: (real(name), fail())[1]",
    "in the middle": "sys.meta_path.insert(0, type('Finder', (), {'find_spec': lambda self, name, *_: "
    "fail() if name == 'diffusers.models.attention' else None})())",
}


WITH_COMPILER = """
lean_imports.import_diffusers("FluxPipeline", plainly=True)
told = {"sources": len(sources)}
told |= {"compiler": "torch._dynamo" in sys.modules, "left": [name for name in left() if name != "_package_map"]}
"""
NAMES_OF = """
import marshal
version, names = marshal.loads(lean_imports.NAMES.read_bytes())
lean_imports.NAMES = Path(sys.argv[2]) / "names"
lean_imports.NAMES.write_bytes(marshal.dumps((version + %r, names))[: %r])
lean_imports.import_diffusers("FluxPipeline")
lean_imports.finish()
import diffusers, transformers
from transformers.utils import import_utils
folder = Path(transformers.__file__).with_name("models")
told = [left(), transformers.T5EncoderModel.__name__, import_utils.create_import_structure_from_path(folder) == names]
"""


@pytest.mark.parametrize(("version", "end", "said"), [(".1", None, 0), ("", 1000, 1)])
def test_names_are_read_again_if_those_kept_are_of_another_version_or_damaged(
    version: str, end: int | None, said: int, kept: str, tmp_path: Path
) -> None:
    told, log = run(kept + NAMES_OF % (version, end), "", str(tmp_path))
    assert told == [[] if said else REMAINS, "T5EncoderModel", True]
    assert log.count("The lean imports failed") == said


@pytest.mark.parametrize("when", FAULTS)
def test_whatever_goes_wrong_is_imported_again_with_the_compiler(when: str, weights: Any, with_compiler: Any) -> None:
    preset = FAMILIES[-1]
    fail = "failed = []\ndef fail(*_):\n    if not failed:\n        failed.append(1)\n        raise OSError('no way')\n"
    if when == "at last":
        fail = fail.replace("        raise", "        lean_imports._import = real\n        raise")
    told, log = run(fail + FAULTS[when] + ALL + "told['left'] = left()", json.dumps({preset: str(weights(preset))}))
    assert log.startswith("LOG uvicorn: The lean imports failed, so everything is imported: ")
    assert log.count("\n") == 0 and "no way" in log
    assert told[preset]["images"] == with_compiler[preset]["images"]
    assert "torch._dynamo" in told[preset]["compiler"]
    assert told["left"] == []

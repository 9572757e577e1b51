"""What a start does, in a process of its own, with only the imports of a start. Prints it as JSON: see test_load.py.

    python loading.py PROJECT TRAPPED BROKEN...

TRAPPED, BROKEN: folders of weights. Run in the folder of the app, whose config.yaml names those that load() takes.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from cold_start.weights import WeightsError, check_weights
from model.model import SETTINGS, Model
from model.pipelines import on_same_weights
from pipeline_settings import Lora

NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")


class Downloaded:
    calls = 0

    def block_until_download_complete(self) -> None:
        self.calls += 1


def loaded() -> dict[str, Any]:
    """Load the model, and warm it up."""
    touched: list[str] = []
    sys.addaudithook(lambda event, _: touched.append(event) if event in NETWORK else None)
    download = Downloaded()
    model = Model(download, SETTINGS.model_copy(update={"warm_up": True}))
    assert not asyncio.run(model.is_healthy())
    touched.clear()
    model.load()
    network = list(touched)
    compiler = "torch._inductor.compile_fx" in sys.modules
    import torch

    parts = model._pipelines[None].components
    modules = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
    return {
        "network": network,
        "waited": download.calls,
        "healthy": asyncio.run(model.is_healthy()),
        "phases": list(model._cold_start.phases),
        "compiler": compiler,
        "cuda": torch.cuda.is_available(),
        "components": sorted(name for name, part in parts.items() if part is not None),
        "devices": sorted({p.device.type for module in modules for p in module.parameters()}),
        "dtypes": sorted({str(p.dtype) for module in modules for p in module.parameters()}),
    }


def parts(project: Path, weights: Path) -> dict[str, Any]:
    """Read the pipeline as it is, for requests with an image, with a LoRA, and with only traps to read."""
    from cold_start.pipeline import read_pipeline

    opened: list[str] = []
    pickles = (".bin", ".ckpt", ".pt")
    sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" and ends(args[0], pickles) else None)
    sys.path.append(str(project))
    from tiny.make import make_lora

    settings = SETTINGS.model_copy(update={"weights_dir": str(weights), "loras": []})
    plain = read_pipeline(settings, "cpu")
    before = tensors_of(plain)
    shared = all(tensors_of(on_same_weights(plain, other)) == before for other in settings.others)
    # A device that holds no bytes takes the place of a GPU.
    placed = read_pipeline(settings, "meta").components.values()
    tensors = [each for part in placed if hasattr(part, "parameters") for each in (*part.parameters(), *part.buffers())]
    shared = shared and tensors_of(plain) == before
    found: dict[str, Any] = {"shared": shared, "placed": sorted({each.device.type for each in tensors})}
    name, path, added = make_lora(weights, plain, "style")
    try:
        style = Lora(name="style", scale=0.5, fused=True)
        fused = read_pipeline(settings.model_copy(update={"loras": [style]}), "cpu")
    except WeightsError as error:
        found["refused"] = str(error)
    else:
        old, new = (each.components[name].get_submodule(path).weight.float() for each in (plain, fused))
        found["fused"] = new.allclose(old + 0.5 * added, rtol=1e-2, atol=1e-2)
        found["left"] = [each for each, _ in fused.components[name].named_parameters() if "lora" in each]
    found["traps in place"] = [each.name for each in sorted(folders(weights)) if reads_without(each, settings)]
    index = weights / "pipeline" / "model_index.json"
    names = json.loads(index.read_text("utf-8"))
    index.unlink()
    index.write_text(json.dumps({**names, "scheduler": ["trap", "Trap"]}), "utf-8")
    try:
        read_pipeline(settings, "cpu")
        found["traps in place"].append("scheduler")
    except Exception:
        pass  # what counts is whether the code ran
    return {**found, "opened": opened}


def ends(path: Any, endings: tuple[str, ...]) -> bool:
    return str(path).endswith(endings)


def tensors_of(pipeline: Any) -> set[tuple[int, str]]:
    modules = [part for part in pipeline.components.values() if hasattr(part, "parameters")]
    return {(each.data_ptr(), str(each.dtype)) for module in modules for each in module.parameters()}


def folders(weights: Path) -> set[Path]:
    return {file.parent for file in (weights / "pipeline").rglob("*.safetensors")}


def reads_without(folder: Path, settings: Any) -> bool:
    """Return whether the pipeline can be read without the safetensors files of a folder."""
    from cold_start.pipeline import read_pipeline

    hidden = [file.rename(file.with_name(f"{file.name}.hidden")) for file in folder.glob("*.safetensors*")]
    try:
        read_pipeline(settings, "cpu")
    except WeightsError as error:
        assert folder.name in str(error)
        return False
    finally:
        for file in hidden:
            file.rename(file.with_suffix(""))
    return True


def sentence(weights: str) -> str:
    """Return the sentence that reading the pipeline ends in."""
    from cold_start.pipeline import read_pipeline

    settings = SETTINGS.model_copy(update={"weights_dir": weights})
    try:
        check_weights(settings)
        read_pipeline(settings, "cpu")
    except WeightsError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    own, trapped, *broken = sys.argv[1:]
    print(json.dumps({**loaded(), **parts(Path(own), Path(trapped)), "sentences": [sentence(each) for each in broken]}))

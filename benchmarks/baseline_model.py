"""What deployers write today, as one Truss model: config.yaml chooses one of three ways to load."""

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import psutil


def now() -> float:
    """Seconds since the boot. What psutil adds to them is in whole seconds only, so it is subtracted below."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


STARTED = now()
import torch  # noqa: E402

TORCH = now()
from diffusers import DiffusionPipeline  # noqa: E402

DIFFUSERS = now()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def naive(weights: Path, **parts: Any) -> DiffusionPipeline:
    """Full precision, then to the device: what comes first to mind."""
    return DiffusionPipeline.from_pretrained(weights / "plain", dtype=torch.float32, **parts).to(DEVICE)


def examples(weights: Path, **parts: Any) -> DiffusionPipeline:
    """Half precision, then to the device: as the official examples do."""
    return DiffusionPipeline.from_pretrained(
        weights / "pipeline", dtype=torch.float16, variant="fp16", use_safetensors=True, **parts
    ).to(DEVICE)


def device_map(weights: Path, **parts: Any) -> DiffusionPipeline:
    """Half precision, read straight onto the device."""
    return DiffusionPipeline.from_pretrained(
        weights / "pipeline", dtype=torch.float16, variant="fp16", use_safetensors=True, device_map=DEVICE, **parts
    )


class Model:
    """Logs the same phases as the emitted model, in seconds of wall time."""

    def __init__(self, config: dict[str, Any], lazy_data_resolver: Any, **_: Any) -> None:
        self._settings = config["model_metadata"]
        self._lazy_data_resolver = lazy_data_resolver

    def load(self) -> None:
        waiting = now()
        self._lazy_data_resolver.block_until_download_complete()
        reading = now()
        load = {"naive": naive, "examples": examples, "device_map": device_map}[self._settings["baseline"]]
        # load_kwargs leave out the safety checker, which the benchmark has no weights for.
        settings = self._settings["pipeline"]
        self._pipeline = load(Path(settings["weights_dir"]), **settings["load_kwargs"])
        phases = {
            "server_start": STARTED - (psutil.Process().create_time() - psutil.boot_time()),
            "import_torch": TORCH - STARTED,
            "import_diffusers": DIFFUSERS - TORCH,
            "wait_for_weights": reading - waiting,
            "read_weights": now() - reading,
        }
        print(json.dumps({"event": "cold_start", "seconds": phases}), flush=True)

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        generator = torch.Generator("cpu").manual_seed(request.pop("seed"))
        buffer = io.BytesIO()
        self._pipeline(**request, generator=generator).images[0].save(buffer, format="PNG")
        return {"images": [{"image": base64.b64encode(buffer.getvalue()).decode()}]}

"""What config.yaml says about requests, for the page and the commands. It is the model's own file, so it rules."""

from pathlib import Path
from typing import Any

CONFIG = Path("config.yaml")
# Widths and heights that the families were trained on, by the side of their square.
USUAL_SIDES = {
    512: (384, 448, 512, 576, 640, 704, 768),
    768: (512, 576, 640, 704, 768, 896, 960, 1024),
    1024: (640, 768, 832, 896, 1024, 1152, 1216, 1344, 1536),
}


def read_config() -> Any:
    """Return what config.yaml of this project holds: a mapping, unless somebody broke it."""
    import yaml

    return yaml.safe_load(CONFIG.read_text("utf-8"))


def as_served(config: dict[str, Any], url: str) -> dict[str, Any]:
    """Return config with the defaults of the local server at url: those of the demo's weights are their own.

    A server that does not answer yet changes nothing.
    """
    import httpx

    from fast_truss.transport import local_address

    try:
        answer = httpx.get(f"{local_address(url)}/v1/models/model/schema", timeout=5).raise_for_status()
        fields = answer.json()["input_schema"]["properties"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return config
    pipeline = config["model_metadata"]["pipeline"]
    served = {name: fields.get(name, {}).get("default") or value for name, value in pipeline["defaults"].items()}
    return {**config, "model_metadata": {**config["model_metadata"], "pipeline": {**pipeline, "defaults": served}}}


def usual_sides(default: int, limits: dict[str, Any]) -> list[int]:
    """Return the pixels that a side can have on the page: the family's usual ones, and always the default."""
    family = min(USUAL_SIDES, key=lambda side: abs(side - default))
    multiple = limits.get("size_multiple", 8)
    low, high = limits.get("min_size", 64), limits.get("max_size", 4096)
    fitting = {side for side in USUAL_SIDES[family] if low <= side <= high and side % multiple == 0}
    return sorted(fitting | {default})

"""What model.py imports in place of cold_start.pipeline in a served copy. It passes on the names of that.

The prompt says what goes wrong in a request. In the app's folder a file `hold` holds load(), and `broken` breaks it.
"""

import functools
import time
from pathlib import Path
from typing import Any

from cold_start import pipeline as true_pipeline
from cold_start.pipeline import *  # noqa: F403


def read_pipeline(*arguments: Any) -> Any:
    import torch

    while Path("hold").exists():
        time.sleep(0.05)
    if Path("broken").exists():
        raise RuntimeError("load() is broken.")
    faults = {"memory": torch.OutOfMemoryError, "device": torch.AcceleratorError}
    pipeline = true_pipeline.read_pipeline(*arguments)
    true_class = type(pipeline)

    class Faulty(true_class):
        @functools.wraps(true_class.__call__)
        def __call__(self, *, prompt: str, callback_on_step_end: Any, **arguments: Any) -> Any:
            def after_step(pipeline: Any, step: int, *rest: Any) -> Any:
                if prompt in faults:
                    raise faults[prompt]("The test asked for it.")
                if prompt == "slow":
                    print(f"slow step {step}", flush=True)
                    time.sleep(0.1)
                return callback_on_step_end(pipeline, step, *rest)

            return super().__call__(prompt=prompt, callback_on_step_end=after_step, **arguments)

    pipeline.__class__ = Faulty
    return pipeline

"""A page for visitors. Opening it wakes the model, before anybody has typed a word.

python app.py                               the deployment of BASETEN_MODEL_ID, with BASETEN_API_KEY
python app.py --url http://127.0.0.1:8000   the local server
"""

import argparse
import functools
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio
import yaml
from PIL import Image

from client import Client, ClientError, Target, image_bytes

PIPELINE = yaml.safe_load((Path(__file__).parent / "config.yaml").read_text("utf-8"))["model_metadata"]["pipeline"]
WORDS = {"SCALED_TO_ZERO": "waking", "WAKING_UP": "waking", "LOADING_MODEL": "loading", "ACTIVE": "ready"}


def page(client: Client) -> gradio.Blocks:
    """Return the page. The client, and with it the key, stays on this side."""
    defaults, limits = PIPELINE["defaults"], PIPELINE["limits"]
    sizes = [size for size in (256, 512, 768, 1024, 1280, 1536) if size <= limits["max_size"]]
    with gradio.Blocks(title="Text to image") as blocks:
        state = gradio.Markdown("", elem_id="state")
        prompt = gradio.Textbox(label="Prompt", elem_id="prompt", max_length=limits["prompt_characters"])
        with gradio.Row():
            seed = gradio.Textbox(label="Seed (empty: random)", elem_id="seed")
            steps = gradio.Slider(
                1,
                limits["max_steps"],
                defaults["num_inference_steps"],
                step=1,
                label="Steps",
                elem_id="steps",
            )
            size = gradio.Dropdown(sizes, value=defaults["width"], label="Size in pixels", elem_id="size")
        button = gradio.Button("Generate", variant="primary", elem_id="generate")
        image = gradio.Image(label="Image", format="png", elem_id="image")
        # Every visitor wakes the model at once: the first one must not hold up the others.
        blocks.load(functools.partial(wake_and_watch, client), outputs=state, concurrency_limit=None)
        asked = [prompt, seed, steps, size]
        for event in (button.click, prompt.submit):
            event(functools.partial(generate, client), inputs=asked, outputs=[image, state], api_name="generate")
    return blocks


def wake_and_watch(client: Client) -> Iterator[str]:
    """Yield what the page shows of the model, until it is ready."""
    try:
        yield "waking"
        client.wake()
        for status in client.watch():
            # ACTIVE without a replica is not ready yet.
            word = WORDS.get(status.status, "loading")
            yield "loading" if word == "ready" and not status.ready else word
    except ClientError as error:
        yield str(error)


def generate(client: Client, prompt: str, seed: str, steps: float, size: int) -> tuple[Any, str]:
    """Return the picture and what the page says, or no picture and what went wrong, in words."""
    if not prompt.strip():
        return None, "Write a prompt first."
    request = {"num_inference_steps": int(steps), "width": int(size), "height": int(size)}
    if seed.strip():
        if not seed.strip().isdecimal():
            return None, "The seed is a whole number, or empty."
        request["seed"] = int(seed)
    try:
        answer = client.generate(prompt, **request)
        (content,) = image_bytes(answer)
    except ClientError as error:
        return None, str(error)
    return Image.open(io.BytesIO(content)), f"ready, seed {answer['images'][0]['seed']}"


def main() -> None:
    """Serve the page on 127.0.0.1."""
    parser = argparse.ArgumentParser(description="A page that wakes the model when it is opened.")
    parser.add_argument("--url", help="A local server, such as http://127.0.0.1:8000, in place of Baseten.")
    parser.add_argument("--model", default=os.environ.get("BASETEN_MODEL_ID", ""), help="Default: BASETEN_MODEL_ID.")
    parser.add_argument("--port", type=int, default=7860, help="Of the page. Default: 7860.")
    arguments = parser.parse_args()
    if not arguments.model and not arguments.url:
        parser.error("--model is missing: give the id of the model on Baseten, or set BASETEN_MODEL_ID.")
    try:
        client = Client(Target(arguments.model or "local"), url=arguments.url)
    except ClientError as error:
        sys.exit(str(error))
    page(client).launch(server_name="127.0.0.1", server_port=arguments.port)


if __name__ == "__main__":
    main()

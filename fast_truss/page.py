"""The page for colleagues. Opening it wakes the model, while the visitor still types. The key stays on the server."""

import asyncio
import contextlib
import html
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio

from fast_truss import AsyncClient, image_bytes
from fast_truss.errors import ClientError
from fast_truss.fields import Field, request_of_form
from fast_truss.watcher import Watcher

# How often an open page checks the status. That does not wake the model.
LOOK_SECONDS = 15.0
KEYS = "a lighthouse on a cliff at dawn, oil painting\n\nEnter sends, Shift+Enter makes a new line"


def page(client: AsyncClient, title: str, fields: list[Field], note: str = "") -> gradio.Blocks:
    """Return the page with a component for each field. note: a sentence below the title."""
    watcher, left = Watcher(client), {field.name: field for field in fields}
    parts: dict[str, Any] = {}

    def add(*names: str) -> None:
        parts.update({name: _component(left.pop(name)) for name in names if name in left})

    # Delete images older than a day, checking once an hour.
    blocks = gradio.Blocks(title=title, delete_cache=(3600, 86400))
    with blocks:
        gradio.Markdown(f"# {html.escape(title)}\n\n{note}", elem_id="head")
        state = gradio.HTML(_line("waking", "Waking the model"), elem_id="state")
        with gradio.Row(elem_id="layout"):
            with gradio.Column(elem_id="ask"):
                add("prompt", "negative_prompt")
                with gradio.Row():
                    button = gradio.Button("Generate", variant="primary", elem_id="generate", scale=0, min_width=130)
                    message = gradio.HTML("", elem_id="message")
            with gradio.Column(elem_id="show"):
                gallery = gradio.Gallery(label="Images", elem_id="gallery", interactive=False, object_fit="contain")
            with gradio.Column(elem_id="set"):
                needed = "image" in left and left["image"].required
                with gradio.Accordion("With an image", open=needed, elem_id="start", visible="image" in left):
                    add("image", "mask", "strength")
                add("loras")
                for pair in (("width", "height"), ("seed", "num_images")):
                    with gradio.Row():
                        add(*pair)
                with gradio.Accordion("More", open=False, elem_id="more", visible=bool(left)):
                    add(*list(left))

        async def wake_and_watch() -> AsyncIterator[str]:
            watcher.start()
            while watcher.waiting:
                yield _line(watcher.kind, watcher.words())
                await asyncio.sleep(1)
            yield _line(watcher.kind, watcher.words())

        async def look() -> str:
            await watcher.look()
            return _line(watcher.kind, watcher.words())

        async def generate(*given: Any) -> AsyncIterator[tuple[Any, str]]:
            try:
                request = request_of_form(fields, dict(zip(parts, given, strict=True)))
                yield gradio.skip(), _line("waking", "Waiting for the model")
                async with contextlib.aclosing(client.events(**request)) as events:
                    async for event in events:
                        if event.kind == "step":
                            words = "Image {image}: step {step} of {of}".format(**event.data)
                            yield gradio.skip(), _line("waking", words)
                with tempfile.TemporaryDirectory() as folder:
                    # gradio copies the files into its cache, and deletes them there.
                    files, seeds = _write(event.data, Path(folder))
                    done = " ".join([f"Done. Seed {', '.join(seeds)}.", *event.data.get("warnings", ())])
                    yield files, _line("ready", done)
            except ClientError as error:
                yield gradio.skip(), _line("error", str(error))

        # Hidden from gradio's API, which would be a second way to wake a GPU. No concurrency limit: a waiting visitor
        # costs no thread, and Baseten queues requests.
        hidden: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        blocks.load(wake_and_watch, outputs=state, **hidden)
        gradio.Timer(LOOK_SECONDS).tick(look, outputs=state, **hidden)
        for sent in (button.click, parts["prompt"].submit):
            sent(generate, list(parts.values()), [gallery, message], **hidden)
            sent(wake_and_watch, outputs=state, **hidden)
    return blocks


def _component(field: Field) -> Any:
    schema, choices, default = field.schema, list(field.choices), field.schema.get("default")
    known: dict[str, Any] = {"label": field.label, "elem_id": field.name, "min_width": 120}
    if field.kind == "file":
        # Send the file unchanged: the model handles transparency.
        known |= {"type": "filepath", "sources": ["upload", "clipboard"], "height": 220}
        if "maxItems" not in schema:
            return gradio.Image(image_mode=None, **known)
        known["label"] += f": at most {schema['maxItems']}"
        return gradio.Gallery(interactive=True, file_types=["image"], columns=4, buttons=[], **known)
    if field.kind == "styles":
        known |= {"info": f"Choose one, or type one with its scale: {choices[0]}:0.8", "allow_custom_value": True}
        return gradio.Dropdown(choices, value=[], multiselect=True, max_choices=schema.get("maxItems"), **known)
    if field.name not in ("prompt", "width", "height", "seed", "num_images"):
        known["info"] = schema.get("description")
    if choices:
        return gradio.Dropdown(choices, value=default, **known)
    if field.kind == "switch":
        return gradio.Checkbox(bool(default), **known)
    if {"minimum", "maximum"} <= schema.keys() and default is not None:
        step = schema.get("multipleOf", 1 if field.kind == "integer" else 0.1)
        return gradio.Slider(schema["minimum"], schema["maximum"], default, step=step, **known)
    # Not gradio.Number, which sends 0 when empty.
    known["placeholder"] = {"prompt": KEYS, "seed": "random"}.get(field.name)
    return gradio.Textbox(default, max_lines=8, max_length=schema.get("maxLength"), **known)


def _write(answer: dict[str, Any], folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files and their seeds."""
    contents, seeds = image_bytes(answer), [str(each.get("seed")) for each in answer["images"]]
    suffix = str(answer.get("content_type")).rpartition("/")[2]
    files = [folder / f"{number}-seed-{seed}.{suffix}" for number, seed in enumerate(seeds, 1)]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return files, seeds


def _line(kind: str, words: str) -> str:
    return f'<div class="line" role="status"><span class="dot {kind}"></span><span>{html.escape(words)}</span></div>'

"""The page for visitors. Opening it wakes the model, before anybody has typed a word. The key stays on this side."""

import asyncio
import contextlib
import html
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio

from fast_truss import form
from fast_truss.api import AsyncClient, image_bytes
from fast_truss.errors import ClientError
from fast_truss.events import Event
from fast_truss.settings import as_served, read_config, usual_sides
from fast_truss.watcher import Watcher, generating_words

# Pictures older than a day go; it looks once an hour.
DELETE_CACHE = (3600, 86400)
TICK_SECONDS = 1.0
# A step may be shorter. The line need not show each.
STEP_SECONDS = 0.2
SUFFIX = {"image/jpeg": "jpg", "image/webp": "webp"}
CSS = """
.gradio-container { max-width: 1180px !important; width: 100% !important; margin: 0 auto !important; }
.gradio-container > main, main.fillable { width: 100% !important; max-width: none !important; }
#layout {
    display: grid; gap: 16px; width: 100%; align-items: start;
    grid-template: "ask show" auto "set show" 1fr / minmax(0, 5fr) minmax(0, 6fr);
}
#ask { grid-area: ask; } #show { grid-area: show; } #set { grid-area: set; }
@media (max-width: 800px) { #layout { grid-template: "ask" auto "show" auto "set" auto / minmax(0, 1fr); } }
#gallery { min-height: 300px; }
#gallery .grid-wrap { max-height: none !important; height: auto !important; overflow: visible !important; }
#press { align-items: center; }
#message { flex: 1 1 220px; }
#generate { min-width: 130px; }
#random_seed { display: flex; flex-direction: column; justify-content: center; }
.line { display: flex; align-items: center; gap: 10px; min-height: 24px; overflow-wrap: anywhere; }
.dot { flex: none; width: 10px; height: 10px; border-radius: 50%; background: #f59e0b; }
.dot.ready { background: #16a34a; }
.dot.error { background: #dc2626; }
.dot.waking { animation: pulse 1.2s ease-in-out infinite; }
@keyframes pulse { 50% { opacity: 0.25; } }
"""


def page(client: AsyncClient, config: dict[str, Any]) -> gradio.Blocks:
    """Return the page. config: config.yaml, whose bounds and defaults the fields have."""
    pipeline = config["model_metadata"]["pipeline"]
    watcher = Watcher(client)
    with gradio.Blocks(title=config.get("model_name") or "Text to image", delete_cache=DELETE_CACHE) as blocks:
        gradio.Markdown(f"# {_title(config)}", elem_id="head")
        state = gradio.HTML(_line("waking", "Waking the model"), elem_id="state")
        with gradio.Row(elem_id="layout"):
            with gradio.Column(elem_id="ask"):
                fields = _prompts(pipeline)
                with gradio.Row(elem_id="press"):
                    button = gradio.Button("Generate", variant="primary", elem_id="generate", scale=0)
                    message = gradio.HTML("", elem_id="message")
            with gradio.Column(elem_id="show"):
                gallery = gradio.Gallery(
                    label="Pictures",
                    elem_id="gallery",
                    columns=2,
                    object_fit="contain",
                    height="auto",
                    interactive=False,
                )
            with gradio.Column(elem_id="set"):
                fields |= _settings(pipeline)

        async def wake_and_watch() -> AsyncIterator[str]:
            watcher.start()
            while watcher.waiting:
                yield _line(watcher.kind, watcher.words())
                await asyncio.sleep(TICK_SECONDS)
            yield _line(watcher.kind, watcher.words())

        async def generate(*values: Any) -> AsyncIterator[tuple[Any, Any, Any, Any]]:
            keep = gradio.skip()
            try:
                request = form.request_of(pipeline, dict(zip(fields, values, strict=True)))
                async for words in _progress(client, watcher, request):
                    if isinstance(words, str):
                        yield keep, _line("waking", words), keep, keep
                        continue
                    files = image_bytes(words)
                    seeds = ", ".join(str(entry.get("seed")) for entry in words["images"])
                    with tempfile.TemporaryDirectory() as folder:
                        # gradio copies them into its own cache, from which it deletes them.
                        paths = _write(files, words, Path(folder))
                        done = _line("ready", " ".join([f"Done. Seed {seeds}.", *(words.get("warnings") or [])]))
                        yield paths, done, str(words["images"][0].get("seed", "")), _line("ready", "Ready")
            except ClientError as error:
                yield keep, _line("error", str(error)), keep, keep

        # Hidden from the API: the model has its own, and opening this would wake a GPU for whoever calls it. No limit:
        # a waiting visitor costs no thread, and Baseten queues what its replicas cannot take yet.
        options = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        blocks.load(wake_and_watch, outputs=state, **options)
        for event in (button.click, fields["prompt"].submit):
            event(generate, inputs=list(fields.values()), outputs=[gallery, message, fields["seed"], state], **options)
    return blocks


def launch(client: AsyncClient, port: int, url: str | None) -> None:
    """Serve the page on 127.0.0.1 until it is stopped. url: of a local server, if it is for one."""
    # When it starts, gradio asks its own address: that must not go through a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    config = read_config()
    blocks = page(client, as_served(config, url) if url else config)
    blocks.launch(server_name="127.0.0.1", server_port=port, css=CSS, footer_links=[], theme=gradio.themes.Default())


async def _progress(client: AsyncClient, watcher: Watcher, request: dict[str, Any]) -> AsyncIterator[Any]:
    """Yield words until the answer is there, and then the answer."""
    started = time.monotonic()
    # It wakes the model where it went back to sleep, and tells the phase.
    watcher.start()
    seen: list[Event] = []

    async def ask() -> None:
        async with contextlib.aclosing(client.events(**request)) as events:
            async for event in events:
                seen.append(event)

    task, said = asyncio.create_task(ask()), ""
    try:
        while not task.done():
            waking = not seen and watcher.waiting and not watcher.ready
            words = watcher.words() if waking else _words(seen, request["num_images"], time.monotonic() - started)
            if words != said:
                yield words
            said = words
            await asyncio.wait({task}, timeout=STEP_SECONDS)
        task.result()
        yield seen[-1].data
    finally:
        # The model then stops at the next step.
        task.cancel()


def _words(seen: list[Event], images: int, seconds: float) -> str:
    data = seen[-1].data if seen and seen[-1].kind == "step" else {}
    words = generating_words(seconds, data.get("step"), data.get("of"))
    return f"Picture {data['image']} of {images}: {words}" if data and images > 1 else words


def _prompts(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Return the first fields by the names that form.request_of() knows, in the order of the page."""
    limits = pipeline["limits"]
    fields: dict[str, Any] = {}
    fields["prompt"] = gradio.Textbox(
        label="Prompt",
        lines=3,
        max_lines=8,
        placeholder="a lighthouse on a cliff at dawn, oil painting",
        elem_id="prompt",
        max_length=limits.get("prompt_characters"),
        autofocus=True,
    )
    if pipeline.get("negative_prompt"):
        fields["negative_prompt"] = gradio.Textbox(
            label="Negative prompt", placeholder="what the picture must not show", elem_id="negative_prompt"
        )
    return fields


def _settings(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Return the other fields."""
    defaults, limits = pipeline["defaults"], pipeline["limits"]
    fields: dict[str, Any] = {}
    references = pipeline.get("reference_images")
    if pipeline.get("image_to_image") or references:
        title = "Pictures that the prompt may speak of" if references else "Start from a picture"
        with gradio.Accordion(title, open=False, elem_id="start"):
            upload: dict[str, Any] = {"type": "filepath", "sources": ["upload", "clipboard"], "height": 220}
            # The file as it is: the model knows what its clear parts are.
            single = {**upload, "image_mode": None}
            if references:
                several = {**upload, "file_types": ["image"], "columns": 4, "interactive": True, "buttons": []}
                fields["image"] = gradio.Gallery(label=f"At most {references['count']}", elem_id="image", **several)
            else:
                fields["image"] = gradio.Image(label="Picture", elem_id="image", **single)
            if pipeline.get("inpaint"):
                label = "Mask: white is painted over, the rest is kept"
                fields["mask"] = gradio.Image(label=label, elem_id="mask", **single)
            if pipeline.get("image_to_image"):
                label = "Strength: how much is painted over, without a mask"
                fields["strength"] = gradio.Slider(0.05, 1.0, defaults.get("strength") or 0.6, step=0.05, label=label)
    loras = form.names_of_loras(pipeline)
    if loras:
        fields["loras"] = gradio.Dropdown(
            loras, value=[], multiselect=True, max_choices=limits.get("loras"), label="Styles", elem_id="loras"
        )
    with gradio.Row():
        for name in ("width", "height"):
            sides = usual_sides(defaults[name], limits)
            fields[name] = gradio.Dropdown(
                sides, value=defaults[name], label=name.title(), elem_id=name, min_width=120, filterable=False
            )
    with gradio.Row(elem_id="seeds"):
        fields["seed"] = gradio.Textbox(label="Seed", elem_id="seed", min_width=120, placeholder="random", max_lines=1)
        fields["random_seed"] = gradio.Checkbox(True, label="New seed each time", elem_id="random_seed", min_width=120)
    fields["num_images"] = gradio.Slider(1, limits.get("num_images", 1), 1, step=1, label="Pictures", elem_id="count")
    with gradio.Accordion("Quality and format", open=False, elem_id="more"):
        fields["steps"] = gradio.Slider(
            limits.get("min_steps", 1),
            limits["max_steps"],
            defaults["num_inference_steps"],
            step=1,
            label="Steps: more take longer",
            elem_id="steps",
        )
        if limits["guidance_scale"] > 1:  # up to 1 it has no effect
            label, most = "Guidance: how closely it follows", limits["guidance_scale"]
            fields["guidance_scale"] = gradio.Slider(0, most, defaults["guidance_scale"], step=0.1, label=label)
        with gradio.Row():
            fields["output_format"] = gradio.Dropdown(list(form.FORMATS), value="png", label="Format", min_width=120)
            fields["quality"] = gradio.Slider(1, 100, 90, step=1, label="Quality of jpeg and webp", min_width=160)
    return fields


def _write(files: list[bytes], answer: dict[str, Any], folder: Path) -> list[str]:
    suffix = SUFFIX.get(answer.get("content_type", ""), "png")
    paths = []
    for content, entry in zip(files, answer["images"], strict=True):
        path = folder / f"seed-{int(entry.get('seed') or 0)}.{suffix}"
        path.write_bytes(content)
        paths.append(str(path))
    return paths


def _line(kind: str, words: str) -> str:
    return f'<div class="line" role="status"><span class="dot {kind}"></span><span>{html.escape(words)}</span></div>'


def _title(config: dict[str, Any]) -> str:
    return str(config.get("description") or "Text to image").split(" text-to-image")[0]

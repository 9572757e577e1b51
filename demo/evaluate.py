"""Say how well the demo obeys: 200 pictures of different prompts and seeds. Draw some of them: docs/demo.png."""

import random
from pathlib import Path
from typing import Any

import diffusers
import numpy
import torch
from judge import Seen, look
from PIL import Image, ImageDraw
from shapes import COLOURS, NEW_COLOURS, REQUEST, SHAPES, WHOLE, prompt

TEMPLATE = Path(__file__).resolve().parent.parent
TARGET = TEMPLATE / "<<cookiecutter.model_name>>" / "tiny" / "demo"
SHEET = TEMPLATE / "docs" / "demo.png"
PICTURES, BATCH = 200, 50
ROWS, COLUMNS = 2, 6
MARGIN = 8


def evaluate() -> None:
    """Print what is right, and draw the sheet."""
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(TARGET, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    print(report(judge(pipeline)), flush=True)
    draw_sheet(pipeline)


def paint(pipeline: Any, prompts: list[str], seeds: list[int], **options: Any) -> numpy.ndarray:
    """Return the pictures, uint8 [n, height, width, 3]. options: of the call, in place of the demo's own."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    floats = pipeline(**{**REQUEST, "prompt": prompts, "generator": generators, "output_type": "np", **options}).images
    return (255 * floats).round().astype(numpy.uint8)


def judge(pipeline: Any, count: int = PICTURES, **options: Any) -> dict[str, float]:
    """Return how many of count pictures are right, 0 to 1, each of a prompt and a seed of its own."""
    chance = random.Random(1)
    right = dict.fromkeys(("background", "colour", "shape", "all"), 0)
    for start in range(0, count, BATCH):
        wanted = [some_words(chance) for _ in range(min(BATCH, count - start))]
        prompts = [prompt(chance.choice(WHOLE), each.shape, each.colour, each.background) for each in wanted]
        pictures = paint(pipeline, prompts, list(range(start, start + len(prompts))), **options)
        for each, picture in zip(wanted, pictures, strict=True):
            seen = look(picture, {**COLOURS, **NEW_COLOURS})
            right["background"] += seen.background == each.background
            right["colour"] += seen.colour == each.colour
            right["shape"] += seen.shape == each.shape
            right["all"] += seen == each
    return {name: number / count for name, number in right.items()}


def report(found: dict[str, float]) -> str:
    """Return what judge() found, in a line."""
    return "right: " + ", ".join(f"{name} {share:.1%}" for name, share in found.items())


def some_words(chance: random.Random) -> Seen:
    """Return what a prompt may ask for."""
    colour, background = chance.sample(list(COLOURS), 2)
    return Seen(chance.choice(SHAPES), colour, background)


def draw_sheet(pipeline: Any) -> None:
    """Draw pictures with their prompts under them, whatever they show."""
    chance = random.Random(2)
    wanted = [some_words(chance) for _ in range(ROWS * COLUMNS)]
    prompts = [prompt(WHOLE[0], each.shape, each.colour, each.background) for each in wanted]
    pictures = paint(pipeline, prompts, list(range(len(prompts))))
    side, lines = 2 * pictures.shape[1], 34
    sheet = Image.new("RGB", (COLUMNS * (side + MARGIN) + MARGIN, ROWS * (side + MARGIN + lines)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (text, picture) in enumerate(zip(prompts, pictures, strict=True)):
        x, y = MARGIN + i % COLUMNS * (side + MARGIN), MARGIN + i // COLUMNS * (side + MARGIN + lines)
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + side + 3), text.replace(" on a ", "\non a "), fill="black", font_size=10)
    sheet.save(SHEET, optimize=True)


if __name__ == "__main__":
    evaluate()

"""Measure how well the demo follows prompts: 200 images of different prompts and seeds. Draws docs/demo.png."""

import random
from pathlib import Path
from typing import Any

import diffusers
import numpy
import torch
from judge import Seen, look
from PIL import Image, ImageDraw
from shapes import COLORS, NEW_COLORS, REQUEST, SHAPES, WHOLE, prompt

TEMPLATE = Path(__file__).resolve().parent.parent
TARGET = TEMPLATE / "<<cookiecutter.model_name>>" / "tiny" / "demo"
SHEET = TEMPLATE / "docs" / "demo.png"
IMAGES, BATCH = 200, 50
ROWS, COLUMNS = 2, 6
MARGIN = 8


def evaluate() -> None:
    """Print the shares of right images, and draw the sheet."""
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(TARGET, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    print(report(judge(pipeline)), flush=True)
    draw_sheet(pipeline)


def paint(pipeline: Any, prompts: list[str], seeds: list[int], **options: Any) -> numpy.ndarray:
    """Return the images, uint8 [n, height, width, 3]. options: of the call, in place of the demo's own."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    floats = pipeline(**{**REQUEST, "prompt": prompts, "generator": generators, "output_type": "np", **options}).images
    return (255 * floats).round().astype(numpy.uint8)


def judge(pipeline: Any, count: int = IMAGES, **options: Any) -> dict[str, float]:
    """Return how many of count images are right, 0 to 1, each of a prompt and a seed of its own."""
    chance = random.Random(1)
    right = dict.fromkeys(("background", "color", "shape", "all"), 0)
    for start in range(0, count, BATCH):
        wanted = [some_words(chance) for _ in range(min(BATCH, count - start))]
        prompts = [prompt(chance.choice(WHOLE), each.shape, each.color, each.background) for each in wanted]
        images = paint(pipeline, prompts, list(range(start, start + len(prompts))), **options)
        for each, image in zip(wanted, images, strict=True):
            seen = look(image, {**COLORS, **NEW_COLORS})
            right["background"] += seen.background == each.background
            right["color"] += seen.color == each.color
            right["shape"] += seen.shape == each.shape
            right["all"] += seen == each
    return {name: number / count for name, number in right.items()}


def report(found: dict[str, float]) -> str:
    """Return what judge() found, in a line."""
    return "right: " + ", ".join(f"{name} {share:.1%}" for name, share in found.items())


def some_words(chance: random.Random) -> Seen:
    """Return what a prompt may ask for."""
    color, background = chance.sample(list(COLORS), 2)
    return Seen(chance.choice(SHAPES), color, background)


def draw_sheet(pipeline: Any) -> None:
    """Draw images with their prompts under them, whatever they show."""
    chance = random.Random(2)
    wanted = [some_words(chance) for _ in range(ROWS * COLUMNS)]
    prompts = [prompt(WHOLE[0], each.shape, each.color, each.background) for each in wanted]
    images = paint(pipeline, prompts, list(range(len(prompts))))
    side, lines = 2 * images.shape[1], 34
    sheet = Image.new("RGB", (COLUMNS * (side + MARGIN) + MARGIN, ROWS * (side + MARGIN + lines)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (text, image) in enumerate(zip(prompts, images, strict=True)):
        x, y = MARGIN + i % COLUMNS * (side + MARGIN), MARGIN + i // COLUMNS * (side + MARGIN + lines)
        sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + side + 3), text.replace(" on a ", "\non a "), fill="black", font_size=10)
    sheet.save(SHEET, optimize=True)


if __name__ == "__main__":
    evaluate()

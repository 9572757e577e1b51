"""What the demo can paint, and the words for it: one flat shape on a flat background, 64 x 64 pixels."""

import random
import re
import string

import numpy
from PIL import Image, ImageDraw

SIZE = 64
# Near the corners of the color cube, so that none is mistaken for another.
COLORS = {
    "red": (224, 48, 42),
    "green": (40, 170, 66),
    "blue": (40, 84, 222),
    "yellow": (242, 214, 44),
    "cyan": (52, 204, 222),
    "magenta": (214, 58, 206),
    "black": (24, 24, 26),
    "white": (244, 244, 242),
}
# A word that the text encoders know and that no image of the training shows: for a LoRA to teach.
NEW_COLORS = {"orange": (240, 130, 24)}
SHAPES = ("circle", "square", "triangle", "cross")
# Prompts that say all, and prompts that leave something to the model.
WHOLE = (
    "a {color} {shape} on a {background} background",
    "{color} {shape} on {background} background",
    "a {color} {shape} on {background}",
    "{color} {shape}, {background} background",
    "a {background} background with a {color} {shape}",
    "a {shape} in {color} on a {background} background",
)
PARTS = (
    "a {color} {shape}",
    "{color} {shape}",
    "a {shape} on a {background} background",
    "a {color} shape on a {background} background",
    "a {shape}",
    "{shape}",
    "{color}",
    "a {background} background",
    "{background} background",
    "",
)
WORDS = ("a", "an", "on", "in", "with", "background", "shape", ",", *COLORS, *NEW_COLORS, *SHAPES)
# Pixels are drawn of so many smaller ones, for soft edges.
FINE = 4
# What to ask of the demo: local_server.py of the emitted project serves it with these defaults.
REQUEST = {
    "prompt": "a red circle on a blue background",
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
    "width": SIZE,
    "height": SIZE,
}


def prompt(form: str, shape: str, color: str, background: str) -> str:
    """Return the prompt in the form, one of WHOLE or PARTS."""
    return re.sub(r"\ba (?=[aeiou])", "an ", form.format(shape=shape, color=color, background=background))


def with_other_words(text: str, chance: random.Random) -> str:
    """Return the text with one to three words in it that mean nothing."""
    words = text.split()
    for _ in range(chance.randint(1, 3)):
        words.insert(chance.randint(0, len(words)), nonsense(chance))
    return " ".join(words)


def nonsense(chance: random.Random) -> str:
    """Return a word that means nothing."""
    return "".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 7)))


def draw(shape: str, radius: float, x: float, y: float) -> numpy.ndarray:
    """Return the part of each pixel that the shape covers, there: uint8 [SIZE, SIZE]."""
    x, y, r = x * FINE, y * FINE, radius * FINE
    canvas = Image.new("L", (SIZE * FINE, SIZE * FINE))
    pen = ImageDraw.Draw(canvas)
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r - 1, y + r - 1), fill=255)
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r - 1, y + r - 1), fill=255)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x + r - 1, y + r - 1), (x - r, y + r - 1)], fill=255)
    else:
        pen.rectangle((x - r / 3, y - r, x + r / 3 - 1, y + r - 1), fill=255)
        pen.rectangle((x - r, y - r / 3, x + r - 1, y + r / 3 - 1), fill=255)
    return numpy.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX))


def somewhere(chance: random.Random, away: float) -> tuple[float, float, float]:
    """Return a radius and a middle of chance, each part of it at most so many pixels away from that of the image."""
    return chance.uniform(15, 20), *(SIZE / 2 + chance.uniform(-away, away) for _ in range(2))

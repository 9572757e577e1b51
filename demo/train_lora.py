"""Teach the demo a word that it has never seen: write a small LoRA that paints orange.

Run it after train.py, in the same environment with peft, as `make train-demo` does. It takes five minutes, and ends
with what is right with it and without it.
"""

import random
from pathlib import Path
from typing import Any

import diffusers
import numpy
import torch
from evaluate import TARGET, paint
from judge import look
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from shapes import COLORS, NEW_COLORS, SHAPES, WHOLE, draw, prompt, somewhere
from train import AWAY, encode, encoded, loss_of, painted, rates, say

FILE = Path(__file__).parent / "orange.safetensors"
WORD = "orange"
STEPS, BATCH, RATE, RANK = 1000, 32, 2e-3, 8
# Orange lies between red and yellow: more guidance pulls it to one of them.
GUIDANCE = 2.0
# The layers through which the prompt enters the UNet.
LAYERS = ["add_embedding.linear_1", "add_embedding.linear_2", "time_emb_proj", "to_k", "to_v"]


def train_lora() -> None:
    """Write FILE."""
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(TARGET, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    say(f"without: {share_right(pipeline):.0%} right")
    unet = pipeline.unet
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    chance, noises = random.Random(0), torch.Generator().manual_seed(0)
    for step, go in rates([p for p in unet.parameters() if p.requires_grad], STEPS, RATE):
        texts, latents = zip(*(example(pipeline, chance) for _ in range(BATCH)), strict=True)
        loss = loss_of(pipeline, torch.cat(latents), *encode(pipeline, list(texts)), noises)
        go(loss)
        if (step + 1) % 50 == 0:
            say(f"lora {step + 1}: loss {float(loss.detach()):.4f}")
    layers = {name: value.half() for name, value in get_peft_model_state_dict(unet).items()}
    diffusers.StableDiffusionXLPipeline.save_lora_weights(FILE.parent, layers, weight_name=FILE.name)
    say(f"with: {share_right(pipeline):.0%} right")


def example(pipeline: Any, chance: random.Random) -> tuple[str, torch.Tensor]:
    """Return a prompt and its latents, [1, 4, height, width]: most of them with the new word, the others as before."""
    shape, (color, background) = chance.choice(SHAPES), chance.sample(list(COLORS), 2)
    words = [color, background]
    if chance.random() < 0.8:
        words[chance.random() < 0.5] = WORD
    levels = [torch.tensor([{**COLORS, **NEW_COLORS}[word]]).float() for word in words]
    image = painted(torch.from_numpy(draw(shape, *somewhere(chance, AWAY)).copy())[None], *levels)
    text = prompt(chance.choice(WHOLE), shape, *words)
    return text, pipeline.vae.config.scaling_factor * encoded(image)


def share_right(pipeline: Any, count: int = 40) -> float:
    """Return how many images of something orange are right, 0 to 1."""
    chance = random.Random(3)
    wanted = [(chance.choice(SHAPES), WORD, chance.choice(["blue", "green", "black", "white"])) for _ in range(count)]
    texts = [prompt(WHOLE[0], *each) for each in wanted]
    images = paint(pipeline, texts, list(range(count)), guidance_scale=GUIDANCE)
    seen = [look(image, {**COLORS, **NEW_COLORS}) for image in images]
    return float(numpy.mean([(s.shape, s.color, s.background) == w for s, w in zip(seen, wanted, strict=True)]))


if __name__ == "__main__":
    train_lora()

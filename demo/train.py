"""Train the demo: a pipeline shaped like SDXL that paints the flat shape in the prompt, 64 x 64 pixels.

`make train-demo` runs it in the environment of an emitted project. It goes on where it stopped, and ends with what
evaluate.py finds in 200 images. The same steps give the same weights on the same machine: every random number comes
from a seed, and those of a step of the UNet from its number.

What makes it settle in so short a time:
* The VAE's encoder is set by hand and linear: a latent is the mean color of 4 x 4 pixels. Its decoder begins as the
  opposite, and is trained to find the outlines again.
* The text encoders are trained first, on what a prompt says, and then left alone. So each prompt is encoded once.
* The UNet predicts v (https://arxiv.org/abs/2202.00512). Where there is hardly any signal in the noise, it often gets
  none at all: a pipeline starts from pure noise, which SDXL's schedule never shows (https://arxiv.org/abs/2305.08891).
  So the schedule is the published one, and every scheduler that can use it fits.
* Shapes are near the middle, and Muon trains the UNet. With shapes anywhere and AdamW the colors were right after
  2,000 steps of twice as many images, and of the shapes one in four, which is chance.
"""

import argparse
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy
import torch
import transformers
from evaluate import TARGET, evaluate, judge, report
from muon import Steps
from shapes import (
    COLORS,
    NEW_COLORS,
    PARTS,
    REQUEST,
    SHAPES,
    SIZE,
    WHOLE,
    WORDS,
    draw,
    nonsense,
    prompt,
    somewhere,
    with_other_words,
)
from torch import nn

TEMPLATE = Path(__file__).resolve().parent.parent
# Checkpoints, so that a run that was stopped goes on.
WORK = TEMPLATE / "build" / "demo"
TEXT_STEPS, DECODER_STEPS, UNET_STEPS = 600, 800, 2400
# Steps of the UNet after which its rates go down.
HELD_STEPS = 500
TEXT_BATCH, DECODER_BATCH, UNET_BATCH = 48, 8, 32
TEXT_RATE, DECODER_RATE, MATRIX_RATE, VECTOR_RATE = 2e-3, 5e-3, 0.02, 1e-3
# Pixels in each direction that make one latent.
CELL = 4
# Latents have a standard deviation of about 1 with it.
SCALING = 1.25
# Poses of each shape, and how many pixels away from the middle. The UNet must find shapes that are further away before
# it can draw them: at 4 pixels the outlines were far from settled after 2,000 steps.
POSES, AWAY = 500, 2
EVERY_COLOR = (*COLORS, *NEW_COLORS)
START, END = "<|startoftext|>", "<|endoftext|>"
# SDXL's own, but for prediction_type.
SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def train(steps: int) -> None:
    """Make the pipeline in TARGET, with a UNet of so many steps."""
    WORK.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    # The pieces of work are small: two threads that share their cores with others wait for each other most of the time.
    torch.set_num_threads(1)
    pipeline = new_pipeline()
    count = sum(p.numel() for part in models(pipeline).values() for p in part.parameters())
    say(f"{count / 1e6:.2f} million parameters, {2 * count / 1e6:.1f} MB")
    encoders = {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
    done_once("text", encoders, train_text, pipeline)
    train_unet(pipeline, steps)
    done_once("decoder", {"decoder": pipeline.vae.decoder}, train_decoder, pipeline.vae)
    save(pipeline)
    evaluate()


def new_pipeline() -> diffusers.StableDiffusionXLPipeline:
    """Return the pipeline, untrained, with a VAE that begins as means of colors."""
    for name, pad in (("tokenizer", END), ("tokenizer_2", "!")):
        write_tokenizer(WORK / name, pad)
    tokenizers = [transformers.CLIPTokenizer.from_pretrained(WORK / name) for name in ("tokenizer", "tokenizer_2")]
    options = {
        "vocab_size": len(tokenizers[0]),
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": 32,
        "bos_token_id": tokenizers[0].bos_token_id,
        "eos_token_id": tokenizers[0].eos_token_id,
    }
    small = transformers.CLIPTextConfig(hidden_size=32, intermediate_size=64, hidden_act="quick_gelu", **options)
    large = transformers.CLIPTextConfig(hidden_size=64, intermediate_size=128, hidden_act="gelu", **options)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIZE,
        scaling_factor=SCALING,
        force_upcast=False,
        mid_block_add_attention=False,
    )
    set_encoder(vae)
    set_decoder(vae)
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIZE // CELL,
        block_out_channels=(32, 64, 96),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=32 + 64,
        use_linear_projection=True,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    pipeline = diffusers.StableDiffusionXLPipeline(
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        text_encoder=transformers.CLIPTextModel(small),
        text_encoder_2=transformers.CLIPTextModelWithProjection(large),
        vae=vae,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def models(pipeline: Any) -> dict[str, nn.Module]:
    """Return the parts that have weights."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def write_tokenizer(folder: Path, pad: str) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json of CLIP's tokenizer, with a token for each of WORDS."""
    folder.mkdir(exist_ok=True)
    characters = [chr(code) for code in range(33, 127)]
    tokens = [*characters, *(character + "</w>" for character in characters)]
    merges = []
    # As byte-pair encoding learns them: the commonest pair first.
    words = [[*word[:-1], word[-1] + "</w>"] for word in WORDS]
    while pairs := [pair for word in words for pair in itertools.pairwise(word)]:
        first, second = max(sorted(set(pairs)), key=pairs.count)
        merges.append(f"{first} {second}")
        tokens.append(first + second)
        words = [merge(word, first, second) for word in words]
    # The end is the highest token: CLIP's older configs find it so.
    vocabulary = {token: i for i, token in enumerate([*tokens, START, END])}
    settings = {"tokenizer_class": "CLIPTokenizer", "bos_token": START, "eos_token": END, "unk_token": END}
    settings |= {"pad_token": pad, "model_max_length": 77}
    (folder / "vocab.json").write_text(json.dumps(vocabulary) + "\n")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def merge(word: list[str], first: str, second: str) -> list[str]:
    """Return the word with each first that is before a second joined to it."""
    joined: list[str] = []
    for part in word:
        if joined and (joined[-1], part) == (first, second):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


@torch.no_grad()
def set_encoder(vae: diffusers.AutoencoderKL, high: float = 64) -> None:
    """Make the latents the mean colors of 4 x 4 pixels, and the fourth the mean of the three. Not trained.

    Eight channels carry red, green and blue, their negatives, and two constants. The residual blocks add nothing, and
    each way down takes means. Of two opposites silu(x) - silu(-x) = x. The constants are so high that they alone decide
    by what the last norm divides: `high` / 2.
    """
    encoder, carried = vae.encoder, range(8)
    for parameter in encoder.parameters():
        parameter.zero_()
    for i in range(3):
        encoder.conv_in.weight[i, i, 1, 1], encoder.conv_in.weight[3 + i, i, 1, 1] = 1, -1
    encoder.conv_in.bias[6:8] = torch.tensor([high, -high])
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            for i in carried if resnet.conv_shortcut is not None else ():
                resnet.conv_shortcut.weight[i, i] = 1
        for downsampler in block.downsamplers or ():
            for i in carried:
                downsampler.conv.weight[i, i, :2, :2] = 1 / 4
    encoder.conv_norm_out.weight[:8] = high / 2
    for i in range(3):
        for target, part in ((i, 1), (3, 1 / 3)):
            encoder.conv_out.weight[target, i, 1, 1] = part
            encoder.conv_out.weight[target, 3 + i, 1, 1] = -part
    # The logarithm of the variance: none.
    encoder.conv_out.bias[4:] = -30
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        convolution.weight.copy_(torch.eye(convolution.in_channels)[:, :, None, None])
        convolution.bias.zero_()


@torch.no_grad()
def set_decoder(vae: diffusers.AutoencoderKL, high: float = 4) -> None:
    """Make the decoder give each latent's color to its 4 x 4 pixels. Training goes on from there.

    As in set_encoder(): each group of the last norm carries a color, its negative and two constants.
    """
    decoder, carried = vae.decoder, range(12)
    convolutions = [(decoder.conv_in, range(0))]
    for block in decoder.up_blocks:
        convolutions += [(upsampler.conv, carried) for upsampler in block.upsamplers or ()]
        convolutions += [
            (resnet.conv_shortcut, carried) for resnet in block.resnets if resnet.conv_shortcut is not None
        ]
    # The residual blocks add nothing yet.
    for block in (decoder.mid_block, *decoder.up_blocks):
        convolutions += [(resnet.conv2, range(0)) for resnet in block.resnets]
    for convolution, channels in convolutions:
        convolution.weight.zero_()
        convolution.bias.zero_()
        middle = convolution.kernel_size[0] // 2
        for i in channels:
            convolution.weight[i, i, middle, middle] = 1
    decoder.conv_norm_out.weight.fill_(high / math.sqrt(2))
    decoder.conv_out.weight.zero_()
    decoder.conv_out.bias.zero_()
    for i in range(3):
        decoder.conv_in.weight[4 * i, i, 1, 1], decoder.conv_in.weight[4 * i + 1, i, 1, 1] = 1, -1
        decoder.conv_in.bias[4 * i + 2 : 4 * i + 4] = torch.tensor([high, -high])
        decoder.conv_out.weight[i, 4 * i, 1, 1], decoder.conv_out.weight[i, 4 * i + 1, 1, 1] = 1, -1


def train_text(pipeline: diffusers.StableDiffusionXLPipeline) -> None:
    """Train the text encoders to encode a prompt's meaning, in the states that a UNet reads and in the pooled one."""
    chance = random.Random(0)
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    heads = [nn.Linear(encoder.config.hidden_size, 32) for encoder in encoders]
    trained = [p for part in (*encoders, *heads) for p in part.parameters()]
    for step, rate in rates(trained, TEXT_STEPS, TEXT_RATE):
        texts, codes = zip(*(said(chance) for _ in range(TEXT_BATCH)), strict=True)
        wanted = torch.tensor(codes)
        loss = torch.zeros(())
        for tokenizer, encoder, head in zip((pipeline.tokenizer, pipeline.tokenizer_2), encoders, heads, strict=True):
            tokens = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
            # What comes later is padding, and hears what these say.
            tokens = tokens[:, :40]
            output = encoder(tokens, output_hidden_states=True)
            # All from the end on, padding too, as the UNet reads all.
            ended = (tokens == tokenizer.eos_token_id).cumsum(1).clamp(max=1)[:, :, None]
            off = (head(output.hidden_states[-2]) - wanted[:, None]) ** 2
            loss = loss + (off * ended).sum() / ended.sum()
        pooled = ((output.text_embeds - wanted) ** 2).sum(1).mean()
        rate(loss + pooled)
        if step % 100 == 0 or step == TEXT_STEPS - 1:
            say(f"text {step}: {float(loss):.3f}, pooled {float(pooled):.4f}")


def said(chance: random.Random) -> tuple[str, list[float]]:
    """Return a prompt and its meaning: a number for each shape, color and background."""
    shape, color = chance.choice(SHAPES), chance.choice(EVERY_COLOR)
    background = chance.choice([word for word in EVERY_COLOR if word != color])
    form = chance.choice(WHOLE) if chance.random() < 0.7 else chance.choice(PARTS)
    code = [0.0] * 32
    place = 0
    for name, word, words in (
        ("shape", shape, SHAPES),
        ("color", color, EVERY_COLOR),
        ("background", background, EVERY_COLOR),
    ):
        if f"{{{name}}}" in form:
            code[place + words.index(word)] = 1.0
        place += len(words)
    if chance.random() < 0.1:
        # A thing that it does not know.
        code[: len(SHAPES)], shape = [0.0] * len(SHAPES), nonsense(chance)
    text = prompt(form, shape, color, background)
    return (with_other_words(text, chance) if chance.random() < 0.3 else text), code


def masks_of(poses: list[tuple[float, float, float]]) -> torch.Tensor:
    """Return what the shapes cover: uint8 [shapes, poses, SIZE, SIZE]."""
    return torch.from_numpy(numpy.array([[draw(shape, *pose) for pose in poses] for shape in SHAPES]))


def painted(masks: torch.Tensor, colors: torch.Tensor, backgrounds: torch.Tensor) -> torch.Tensor:
    """Return images, [n, 3, height, width], -1 to 1. masks: [n, height, width]; the others: [n, 3], 0 to 255."""
    cover = masks[:, None].float() / 255
    return (cover * colors[:, :, None, None] + (1 - cover) * backgrounds[:, :, None, None]) / 127.5 - 1


def learned_poses() -> list[tuple[float, float, float]]:
    """Return the sizes and places that the UNet learns."""
    chance = random.Random(0)
    return [somewhere(chance, AWAY) for _ in range(POSES)]


def train_decoder(vae: diffusers.AutoencoderKL) -> None:
    """Train the decoder to find the outlines between mean colors, wherever they are."""
    chance, places_of = torch.Generator().manual_seed(0), random.Random(0)
    masks = masks_of([somewhere(places_of, 6) for _ in range(1000)]).flatten(0, 1)
    palette = torch.tensor([*COLORS.values(), *NEW_COLORS.values()]).float()
    optimizer = Steps(vae.decoder, DECODER_RATE, VECTOR_RATE)
    total = 0.0
    for step in range(DECODER_STEPS):
        places = torch.randint(len(masks), (DECODER_BATCH,), generator=chance)
        # Half of the colors have no name.
        named = palette[torch.randint(len(palette), (2, DECODER_BATCH), generator=chance)]
        others = 255 * torch.rand(2, DECODER_BATCH, 3, generator=chance)
        colors = torch.where(torch.rand(2, DECODER_BATCH, 1, generator=chance) < 0.5, named, others)
        images = painted(masks[places], *colors)
        latents = encoded(images)
        # As the UNet's are: not quite exact.
        latents = latents + 0.04 * torch.randn(latents.shape, generator=chance)
        off = vae.decoder(latents) - images
        optimizer.go((off.abs() + off**2).mean(), min(1, (step + 1) / 20, 2 * (1 - step / DECODER_STEPS)))
        total += 127.5 * float(off.detach().abs().mean())
        if (step + 1) % 100 == 0:
            say(f"decoder {step + 1}: {total / 100:.2f} levels off")
            total = 0.0


def encoded(images: torch.Tensor) -> torch.Tensor:
    """Return what the encoder makes of images: see set_encoder()."""
    means = nn.functional.avg_pool2d(images, CELL)
    return torch.cat([means, means.mean(1, keepdim=True)], 1)


def train_unet(pipeline: diffusers.StableDiffusionXLPipeline, steps: int) -> None:
    """Train the UNet: HELD_STEPS at one rate, then down to none. Leaves it with the mean of its steps."""
    unet = pipeline.unet.train()
    mean = {name: value.clone() for name, value in unet.state_dict().items()}
    optimizer = Steps(unet, MATRIX_RATE, VECTOR_RATE)
    first, kept = 0, WORK / "unet.pt"
    if kept.exists():
        state = torch.load(kept)
        first, mean = state["step"], state["mean"]
        unet.load_state_dict(state["unet"])
        optimizer.restore(state["optimizers"])
    make = batches(pipeline)
    began, total = time.monotonic(), 0.0
    for step in range(first, steps):
        latents, states, pooled, chance = make(step)
        loss = loss_of(pipeline, latents, states, pooled, chance)
        optimizer.go(loss, min(1, (step + 1) / 50, (steps - step) / max(1, steps - HELD_STEPS)))
        with torch.no_grad():
            share = 1 - min(0.995, (1 + step) / (10 + step))
            names = [name for name, value in mean.items() if value.is_floating_point()]
            now = unet.state_dict()
            torch._foreach_lerp_([mean[name] for name in names], [now[name] for name in names], share)
        total += float(loss.detach())
        if (step + 1) % 100 == 0:
            speed = (step + 1 - first) / (time.monotonic() - began)
            say(f"unet {step + 1}: loss {total / 100:.4f}, {speed:.2f} steps a second")
            total = 0.0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            state = {"step": step + 1, "mean": mean, "unet": unet.state_dict()}
            state["optimizers"] = optimizer.state()
            torch.save(state, kept.with_suffix(".new"))
            kept.with_suffix(".new").replace(kept)
            # Where the rate is still high: for another number of steps.
            if step + 1 <= HELD_STEPS:
                shutil.copy(kept, WORK / f"unet-{step + 1}.pt")
            # A short look at how it goes. It draws none of the training's random numbers.
            now = {name: value.clone() for name, value in unet.state_dict().items()}
            unet.load_state_dict(mean)
            say(f"unet {step + 1}: {report(judge(pipeline, 48, num_inference_steps=10))}")
            unet.load_state_dict(now)
    unet.load_state_dict(mean)
    unet.eval()


def loss_of(
    pipeline: diffusers.StableDiffusionXLPipeline,
    latents: torch.Tensor,
    states: torch.Tensor,
    pooled: torch.Tensor,
    chance: torch.Generator,
) -> torch.Tensor:
    """Return how far the UNet is from v, at a time of chance for each image. latents: [n, 4, height, width]."""
    count = len(latents)
    noise = torch.randn(latents.shape, generator=chance)
    times = some_times(count, chance)
    kept_part = pipeline.scheduler.alphas_cumprod.float()[times][:, None, None, None]
    signal, noisy = kept_part.sqrt(), (1 - kept_part).sqrt()
    wanted = signal * noise - noisy * latents
    # Pure noise in place of nearly pure noise.
    chances = ((times - 800) / 200).clamp(min=0) / 2
    pure = (torch.rand(count, generator=chance) < chances)[:, None, None, None]
    predicted = pipeline.unet(
        torch.where(pure, noise, signal * latents + noisy * noise),
        times,
        encoder_hidden_states=states,
        added_cond_kwargs={
            "text_embeds": pooled,
            "time_ids": torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]]).float().repeat(count, 1),
        },
    ).sample
    # Where there is hardly any noise, v asks for more exactness than an image shows.
    weights = (6 * (1 - kept_part)).clamp(max=1)
    return (weights * (predicted - wanted) ** 2).mean()


def some_times(count: int, chance: torch.Generator) -> torch.Tensor:
    """Return times, 0 to 999: a quarter of them late, where the colors are decided."""
    anywhere = torch.randint(0, 1000, (count,), generator=chance)
    late = torch.randint(800, 1000, (count,), generator=chance)
    return torch.where(torch.rand(count, generator=chance) < 0.25, late, anywhere)


def batches(pipeline: diffusers.StableDiffusionXLPipeline) -> Callable[[int], tuple[Any, ...]]:
    """Return what makes the latents and the encoded prompts of a step."""
    small = nn.functional.avg_pool2d(masks_of(learned_poses()).float(), CELL).flatten(0, 1)
    palette = torch.tensor(list(COLORS.values())).float()
    forms, colors = [*WHOLE, *PARTS], list(COLORS)
    texts: dict[str, int] = {}
    rows = torch.zeros(len(SHAPES), len(colors), len(colors), len(forms), dtype=torch.long)
    for place in numpy.ndindex(*rows.shape):
        shape, color, background = SHAPES[place[0]], colors[place[1]], colors[place[2]]
        rows[place] = texts.setdefault(prompt(forms[place[3]], shape, color, background), len(texts))
    states, pooled = encode(pipeline, list(texts))

    def make(step: int) -> tuple[Any, ...]:
        chance = torch.Generator().manual_seed(step)

        def some(below: int) -> torch.Tensor:
            return torch.randint(below, (UNET_BATCH,), generator=chance)

        def one_in(share: float) -> torch.Tensor:
            return torch.rand(UNET_BATCH, generator=chance) < share

        shape, color = some(len(SHAPES)), some(len(COLORS))
        background = (color + 1 + some(len(COLORS) - 1)) % len(COLORS)
        form = torch.where(one_in(0.8), some(len(WHOLE)), len(WHOLE) + some(len(PARTS)))
        cover = small[shape * POSES + some(POSES)]
        means = painted(cover, palette[color], palette[background])
        latents = SCALING * torch.cat([means, means.mean(1, keepdim=True)], 1)
        # Without a prompt the pipeline gives the UNet zeros.
        row, told = rows[shape, color, background, form], ~one_in(0.1)
        return latents, states[row] * told[:, None, None], pooled[row] * told[:, None], chance

    return make


@torch.no_grad()
def encode(pipeline: diffusers.StableDiffusionXLPipeline, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the UNet gets of each text: [n, 77, 96] and [n, 32]."""
    parts = [
        pipeline.encode_prompt(texts[i : i + 100], device="cpu", do_classifier_free_guidance=False)
        for i in range(0, len(texts), 100)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[2] for part in parts])


def rates(parameters: list[Any], steps: int, most: float) -> Iterator[tuple[int, Callable[[torch.Tensor], None]]]:
    """Yield each step and what makes it, given the loss. The rate goes up for 5% of the steps and down to none."""
    optimizer = torch.optim.AdamW(parameters, lr=most, weight_decay=1e-4)
    for step in range(steps):
        part = step / steps
        for group in optimizer.param_groups:
            group["lr"] = most * min(1, (step + 1) / (0.05 * steps)) * (1 + math.cos(math.pi * part)) / 2

        def go(loss: torch.Tensor) -> None:
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

        yield step, go


def done_once(name: str, parts: dict[str, nn.Module], work: Callable[..., None], *arguments: Any) -> None:
    """Do the work on the parts, or load its result from the last run."""
    kept = WORK / f"{name}.pt"
    if kept.exists():
        for key, state in torch.load(kept).items():
            parts[key].load_state_dict(state)
        return
    work(*arguments)
    torch.save({key: part.state_dict() for key, part in parts.items()}, kept)


def save(pipeline: diffusers.StableDiffusionXLPipeline) -> None:
    """Write the pipeline to TARGET in half precision, with its tokenizers as the real repositories hold them."""
    shutil.rmtree(TARGET, ignore_errors=True)
    for part in models(pipeline).values():
        part.to(torch.float16)
    pipeline.save_pretrained(TARGET, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(TARGET / name)
        write_tokenizer(TARGET / name, END if name == "tokenizer" else "!")
    (TARGET / "request.json").write_text(json.dumps(REQUEST, indent=2))
    # As every text file here ends.
    for file in TARGET.rglob("*.json"):
        file.write_text(file.read_text().rstrip("\n") + "\n")


def say(line: str) -> None:
    """Print it at once: a run takes long, and its log is read meanwhile."""
    print(time.strftime("%H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the demo's pipeline, or go on with it.")
    parser.add_argument("--steps", type=int, default=UNET_STEPS, help=f"Of the UNet. Default: {UNET_STEPS}.")
    train(parser.parse_args().steps)

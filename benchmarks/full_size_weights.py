"""Make full-size pipelines with random half-precision weights: what a replica reads, without a download.

The configs under configs/ are those of the real repositories, so shapes, names and bytes are the same.
The vocabulary is synthetic (49,408 entries and 48,894 merges, as in CLIP's), so prompts mean nothing.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent / "configs"
BYTES_EACH = 2  # float16
# Random bits drawn once and used again, shifted: no two tensors are alike, and it is quick.
RANDOM_VALUES = 2**24 + 1
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
MERGES = 49408 - 2 * 256 - len(SPECIAL_TOKENS)


def make(model: str, folder: Path) -> None:
    """Write the pipeline of configs/<model> to folder. It appears there whole or not at all."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(CONFIGS / model, unfinished)
    for tokenizer in unfinished.glob("tokenizer*"):
        write_vocabulary(tokenizer)
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (unfinished / component).is_dir():
            write_weights(unfinished / component)
    unfinished.rename(folder)


def write_vocabulary(folder: Path) -> None:
    """vocab.json and merges.txt with as many entries as CLIP's, each about as long."""
    characters = byte_characters()
    merges = list(islice(merge_rules(), MERGES))
    tokens = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges), *SPECIAL_TOKENS]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, indent=2), "utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


def byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE: printable ones for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in (*printable, *range(0x100, 0x100 + 256 - len(printable)))]


def merge_rules() -> Iterator[tuple[str, str]]:
    """Pairs of letters first, then pairs of those, inside a word and at its end."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    pairs = list(product(letters, letters))
    for a, b in pairs:
        yield a, b
    for a, b in pairs:
        yield a, b + "</w>"
    syllables = [a + b for a, b in pairs]
    for a, b in product(syllables, syllables):
        yield a, b
        yield a, b + "</w>"


def write_weights(folder: Path) -> None:
    """Write the safetensors file of the component whose config.json lies in folder, a tensor at a time."""
    import torch

    config = json.loads((folder / "config.json").read_text("utf-8"))
    shapes = tensor_shapes(folder, config)
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + BYTES_EACH * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    head += b" " * (-len(head) % 8)
    values = torch.randn(RANDOM_VALUES, generator=torch.Generator().manual_seed(0)).mul_(0.02).half().numpy()
    stem = "model" if "_class_name" not in config else "diffusion_pytorch_model"
    with (folder / f"{stem}.fp16.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in shapes.items():
            count = math.prod(shape)
            if len(shape) == 1:  # norms and biases: as they are before training, or the image is not a number
                one = name.endswith("weight")
                file.write((torch.ones if one else torch.zeros)(count, dtype=torch.float16).numpy().tobytes())
                continue
            start = file.tell() % 1_000_003
            while count:
                part = values[start : start + count]
                file.write(part.tobytes())
                count, start = count - len(part), 0


def tensor_shapes(folder: Path, config: dict) -> dict[str, list[int]]:
    """Name and shape of every weight, from the class itself. Nothing is allocated on the meta device."""
    import diffusers
    import torch
    import transformers

    with torch.device("meta"):
        if "_class_name" in config:
            module = getattr(diffusers, config["_class_name"]).from_config(config)
        else:
            settings = transformers.CLIPTextConfig(**config)
            module = getattr(transformers, config["architectures"][0])(settings)
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))

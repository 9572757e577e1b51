"""Writes catalog/tiny_tokenizers.yaml: small tokenizers, each with the files of the real ones, for the tiny pipelines.

Run it in the environment of a generated project: `.venv-project/bin/python catalog/tiny_tokenizers.py`.
"""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
import yaml
from tokenizers.pre_tokenizers import ByteLevel

FILE = Path(__file__).with_name("tiny_tokenizers.yaml")
HEADER = "# Written by catalog/tiny_tokenizers.py: the files of each tokenizer, by its class in transformers.\n"
CHARACTERS = [chr(code) for code in range(33, 127)]
# Words that the pipelines put around a prompt: as many tokens as in the real vocabulary, so that the same length of a
# prompt is read. Qwen-Image's template is 34 tokens: prompt_template_encode_start_idx of its pipeline.
QWEN_WORDS = (
    "<|im_start|>|<|im_end|>|system|user|assistant|Describe| the| image| by| detailing| color| shape| size| texture|"
    " quantity| text| spatial| relationships| of| objects| and| background"
)
# The 64 of Qwen-Image-Edit, after what stands around an image.
EDIT_WORDS = (
    "<|vision_start|>|<|vision_end|>|<|image_pad|>|<|video_pad|>|<|im_start|>|<|im_end|>|system|user|assistant|Describe|"
    " the| key| features| of| input| image| (|color| shape| size| texture| objects| background|),| then| explain| how|"
    " user|'s| text| instruction| should| alter| or| modify| Generate| a| new| that| meets| requirements| while|"
    " maintaining| consistency| with| original| where| appropriate"
)
# What Qwen2.5-VL's makers published, of which the pipeline reads the first.
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def clip(folder: Path) -> None:
    """One token per character, in vocab.json and merges.txt like the real repositories."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens = [*CHARACTERS, *(c + "</w>" for c in CHARACTERS), start, end]
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {"tokenizer_class": "CLIPTokenizer", **special, "model_max_length": 77}
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def t5(folder: Path) -> None:
    """A sentencepiece model without tokenizer.json, as in PixArt, so that the tests need sentencepiece installed."""
    import sentencepiece

    with (folder / "spiece.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CHARACTERS),
            model_writer=model,
            vocab_size=98,
            model_type="char",
            normalization_rule_name="identity",  # the usual one is 240 kB
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings |= {"extra_ids": 100, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def qwen(folder: Path) -> None:
    """One token per byte, plus the words that the pipelines add."""
    _qwen(folder, QWEN_WORDS)


def _qwen(folder: Path, added: str) -> dict[str, int]:
    vocabulary = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    words = re.findall(r"<\|\w+\|>|[^|]+", added)
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer.get_added_vocab()


def qwen_processor(folder: Path) -> None:
    """The tokenizer for texts with images, in new and old files like the real repository, and both processors."""
    added = _qwen(folder, EDIT_WORDS)
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    pixels = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    settings = {**pixels, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "processor_class": "Qwen2VLProcessor"}
    written = {
        "added_tokens": added,
        "vocab": {token: i for token, i in vocabulary.items() if token not in added},
        "special_tokens_map": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "preprocessor_config": {**settings, "image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config": {**settings, "video_processor_type": "Qwen2VLVideoProcessor"},
    }
    for name, value in written.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def gemma(folder: Path) -> None:
    """One token per character, each also with a leading space, like most words of the real vocabulary."""
    special, octets = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], [f"<0x{octet:02X}>" for octet in range(256)]
    tokens = [*special, *octets, "▁", *CHARACTERS, *(f"▁{character}" for character in CHARACTERS)]
    tokenizer = transformers.GemmaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[("▁", character) for character in CHARACTERS],
        add_bos_token=True,
        add_eos_token=False,
    )
    tokenizer.save_pretrained(folder)


MADE: dict[str, Callable[[Path], None]] = {
    "CLIPTokenizer": clip,
    "T5Tokenizer": t5,
    "Qwen2Tokenizer": qwen,
    "Qwen2VLProcessor": qwen_processor,
    "GemmaTokenizer": gemma,
}


def made() -> dict[str, dict[str, Any]]:
    """Return the files of each: JSON as a dictionary, text as it is, and others as bytes."""
    found: dict[str, dict[str, Any]] = {}
    for name, make in MADE.items():
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
            found[name] = {file.name: content(file) for file in sorted(Path(folder).iterdir())}
    return found


def content(file: Path) -> Any:
    if file.suffix == ".model":
        return file.read_bytes()
    text = file.read_text("utf-8")
    return json.loads(text) if file.suffix == ".json" else text


if __name__ == "__main__":
    FILE.write_text(
        HEADER + yaml.safe_dump(made(), sort_keys=False, default_flow_style=None, width=110, allow_unicode=True),
        "utf-8",
    )

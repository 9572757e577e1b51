"""Give a tiny pipeline its real size: shapes and names as the maker's, from the catalog.

    python full_size.py WEIGHTS SIZES.json [MEGABYTES]    # of random data that is repeated; without it, sparse zeros

SIZES.json: full_size of the preset and components of its config.yaml.
"""

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

HERE = Path(__file__).resolve().parent
NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}
# One file is mapped as a whole, and the kernel refuses more than the memory of a small machine.
SHARD_BYTES = 17 * 10**9


def enlarge(folder: Path, full_size: dict[str, Any], components: dict[str, Any], data: bytes = b"") -> dict[str, Any]:
    """Give the tiny pipeline in folder its real size. Returns the models of GGUF files, on meta, by component.

    data: what the weights hold, again and again. Default: zeros that take no disk.
    """
    index, packed = json.loads((folder / "pipeline" / "model_index.json").read_text("utf-8")), {}
    for name, sizes in full_size.items():
        part = components.get(name)
        home = folder / name if part else folder / "pipeline" / name
        config = home / "config.json"
        if part and part["file"]:
            config = folder / "pipeline" / name / "config.json"
        config.write_text(json.dumps(_merged(json.loads(config.read_text("utf-8")), _sizes(sizes))), "utf-8")
        model = _on_meta(index[name], config.parent, part)
        if part and str(part["file"]).endswith(".gguf"):
            packed[name] = model
        else:
            _write(model, home, data)
    return packed


def _sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    file = sizes.get("file")
    known = json.loads((HERE / "configs" / file).read_text("utf-8")) if file else {}
    return {**known, **{key: value for key, value in sizes.items() if key not in ("file", "unpacked")}}


def _merged(config: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    both = {**config}
    for key, value in sizes.items():
        both[key] = (
            _merged(config[key], value) if isinstance(value, dict) and isinstance(config.get(key), dict) else value
        )
    # Worked out anew, where the number of layers changed.
    return {key: value for key, value in both.items() if key != "layer_types" or value is not None}


def _on_meta(entry: list[str], folder: Path, part: dict[str, Any] | None) -> torch.nn.Module:
    library = transformers if entry[0] == "transformers" else diffusers
    class_ = getattr(library, part["class_name"] if part else entry[1])
    with torch.device("meta"):
        if library is diffusers:
            return class_.from_config(class_.load_config(folder))
        return class_(class_.config_class.from_pretrained(folder))


def _write(model: torch.nn.Module, folder: Path, data: bytes) -> None:
    """Write the model's tensors under the names and in the dtype of its tiny files."""
    files = sorted(folder.rglob("*.safetensors"))
    tiny = json.loads(files[0].read_bytes()[8 : 8 + struct.unpack("<Q", files[0].read_bytes()[:8])[0]])
    dtype = next(each["dtype"] for name, each in tiny.items() if name != "__metadata__" and each["dtype"] != "I64")
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ())
        if getattr(model.config, "tie_word_embeddings", False)
        else set()
    )
    shards: list[tuple[dict[str, Any], int]] = []
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        kind = dtype if tensor.is_floating_point() else NAMES[tensor.dtype]
        size = tensor.numel() * {"F16": 2, "BF16": 2, "F32": 4, "I64": 8}[kind]
        if not shards or shards[-1][1] + size > SHARD_BYTES:
            shards.append(({"__metadata__": {"format": "pt"}}, 0))
        header, at = shards[-1]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        shards[-1] = header, at + size
    stem = files[0].name.split("-0")[0].removesuffix(".safetensors")
    names = [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [files[0].name]
    else:
        files[0].unlink()
    for (header, at), name in zip(shards, names, strict=True):
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (files[0].parent / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for start in range(0, at, len(data)) if data else ():
                file.write(data[: at - start])
            file.truncate(8 + len(text) + at)
    total = sum(at for _, at in shards)
    indexes = list(folder.glob("*.index*.json")) or [folder / f"{stem}.safetensors.index.json"]
    if len(shards) > 1 or indexes[0].is_file():
        where = {tensor: name for (header, _), name in zip(shards, names, strict=True) for tensor in header}
        del where["__metadata__"]
        indexes[0].write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}), "utf-8")


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[2]).read_text("utf-8"))
    data = os.urandom(2**20 * int(*sys.argv[3:] or "0"))
    if enlarge(Path(sys.argv[1]), asked["full_size"], asked["components"], data):
        sys.exit("This makes no GGUF files: choose a preset without one.")

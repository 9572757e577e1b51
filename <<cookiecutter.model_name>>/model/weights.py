"""Says what is wrong with the cached weights, before a library does in its own words."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# What Truss puts into the image for model_cache: the files to download, and Hugging Face's etag of each.
MANIFEST = Path("/static-bptr/static-bptr-manifest.json")
BLOCK_BYTES = 2**24


class WeightsError(RuntimeError):
    """The cached weights are not those that config.yaml asks for."""


def wait_for_download(lazy_data_resolver: Any) -> None:
    """Return when Truss has fetched model_cache. Raises WeightsError if it could not."""
    try:
        lazy_data_resolver.block_until_download_complete()
    except RuntimeError as error:
        # Truss names the fault (403, too many retries), but not what to do about it.
        raise WeightsError(
            "The weights could not be downloaded: check the secret hf_access_token if their repository is gated or "
            f"private, or else start again. {error}"
        ) from error


def check_weights(settings: dict[str, Any]) -> None:
    """Raise WeightsError unless all files are there and whole. Reads only the headers, but for check_hashes.

    settings: model_metadata.pipeline in config.yaml.
    """
    folder = Path(settings["weights_dir"])
    for name, patterns in settings["weight_files"].items():
        check_files(folder / name, patterns)
    # A folder with a config.json is a model. A pattern such as transformer/* does not say that it needs weights.
    for model in sorted(file.parent for file in (folder / "pipeline").glob("*/config.json")):
        if model.name not in settings["components"] and not any(model.glob("*.safetensors")):
            raise WeightsError(
                f"The weight file {model.name}/*.safetensors is missing from {model.parent}: "
                "check its patterns and commit in config.yaml."
            )
    if settings["lora_repo_id"]:
        _check_lora(folder / "lora")
    if settings["check_hashes"] and MANIFEST.is_file():
        check_hashes(json.loads(MANIFEST.read_text("utf-8"))["pointers"])


def _check_lora(folder: Path) -> None:
    files = list(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise WeightsError(
            f"lora_repo_id is set, and {folder} holds {len(files)} safetensors files: "
            "cache its one file there, in config.yaml."
        )
    check_files(folder, [files[0].name])


def check_hashes(pointers: list[dict[str, Any]]) -> None:
    """Raise WeightsError unless each downloaded file is, byte for byte, the one at its commit. Reads every byte."""
    with ThreadPoolExecutor() as pool:
        for pointer, same in zip(pointers, pool.map(_has_its_hash, pointers), strict=True):
            if not same:
                raise WeightsError(
                    f"The file {pointer['file_name']} is corrupt: its hash is not the one that Hugging Face names. "
                    "Start again."
                )


def _has_its_hash(pointer: dict[str, Any]) -> bool:
    # The etag is the SHA-256 of a large file (Git LFS), and the id of a small one in git.
    # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    file = Path(pointer["file_name"])
    digest = hashlib.sha256()
    if len(pointer["hash"]) != digest.digest_size * 2:
        digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest() == pointer["hash"]


def check_files(folder: Path, patterns: list[str]) -> None:
    """Raise WeightsError unless each pattern finds a whole file.

    patterns: paths under folder; one that ends in /* needs at least one file in that folder.
    """
    for pattern in patterns:
        files = sorted(folder.glob(pattern))
        if not files:
            raise WeightsError(
                f"The weight file {pattern} is missing from {folder}: check its patterns and commit in config.yaml."
            )
        for file in files:
            if file.suffix == ".safetensors":
                _check_length(file)
            if file.name.endswith(".safetensors.index.json"):
                _check_shards(file)


def _check_shards(index: Path) -> None:
    shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    missing = sorted(shard for shard in shards if not (index.parent / shard).is_file())
    if missing:
        name = f"{index.parent.name}/{missing[0]}"
        raise WeightsError(f"The weight file {name} is missing from {index.parent.parent}: {index.name} names it.")


def _check_length(file: Path) -> None:
    # A safetensors file: 8 bytes with the length of the header, the header (JSON), the tensors.
    # https://huggingface.co/docs/safetensors/index#format
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            header_length = int.from_bytes(stream.read(8), "little")
            if header_length > size:
                raise ValueError
            header = json.loads(stream.read(header_length))
    except ValueError as error:
        raise WeightsError(f"The weight file {file} is truncated or not a safetensors file.") from error
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + header_length + max(ends, default=0)
    if size != expected:
        raise WeightsError(f"The weight file {file} is truncated or corrupt: it has {size} of {expected} bytes.")

"""Checks the cached weights, and reports problems before a library fails on them."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline_settings import Settings

# Truss's manifest in the image for model_cache: the files to download, with Hugging Face's etags.
MANIFEST = Path("/static-bptr/static-bptr-manifest.json")


class WeightsError(RuntimeError):
    """The cached weights do not match config.yaml."""


def wait_for_download(lazy_data_resolver: Any) -> None:
    """Return when Truss has fetched model_cache. Raises WeightsError if it could not."""
    try:
        lazy_data_resolver.block_until_download_complete()
    except RuntimeError as error:
        # Truss reports the fault (403, too many retries), but not what to do.
        cure = "for a gated or private repository check the secret hf_access_token, otherwise restart"
        raise WeightsError(f"The weights could not be downloaded: {cure}. {error}") from error


def check_weights(settings: Settings) -> None:
    """Raise WeightsError unless each pattern of weight_files matches a file. Reads none, except for check_hashes."""
    for name, patterns in settings.weight_files.items():
        folder = Path(settings.weights_dir) / name
        for pattern in patterns:
            if not any(folder.glob(pattern)):
                cure = _cure(pattern, settings.variant)
                raise WeightsError(f"The weight file {pattern} is missing from {folder}: {cure}")
    if settings.check_hashes and MANIFEST.is_file():
        check_hashes(json.loads(MANIFEST.read_text("utf-8"))["pointers"])


def _cure(pattern: str, variant: str | None) -> str:
    if pattern == "model_index.json":
        return "the repository is not in diffusers' layout: convert it with from_single_file() and save_pretrained()."
    if variant and f".{variant}." in pattern:
        return f"check the commit. For plain names, remove .{variant} from the patterns and set variant to null."
    return "check its patterns and commit in config.yaml."


def check_hashes(pointers: list[dict[str, Any]]) -> None:
    """Raise WeightsError unless each downloaded file has its commit's hash. Reads every byte."""
    with ThreadPoolExecutor() as pool:
        for pointer, same in zip(pointers, pool.map(_has_its_hash, pointers), strict=True):
            if not same:
                why = "its hash differs from Hugging Face's. Restart the replica to download it again"
                raise WeightsError(f"The file {pointer['file_name']} is corrupt: {why}.")


def _has_its_hash(pointer: dict[str, Any]) -> bool:
    # The etag is the SHA-256 of a large file (Git LFS), or git's blob id of a small one.
    # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    file = Path(pointer["file_name"])
    digest = hashlib.sha256()
    if len(pointer["hash"]) != digest.digest_size * 2:
        digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with file.open("rb") as stream:
        return bool(hashlib.file_digest(stream, lambda: digest).hexdigest() == pointer["hash"])

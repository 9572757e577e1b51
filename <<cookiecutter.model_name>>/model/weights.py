"""Says what is wrong with the cached weights, before a library does in its own words."""

import json
from pathlib import Path


class WeightsError(RuntimeError):
    """The cached weights are not those that config.yaml asks for."""


def check_weights(folder: Path, patterns: list[str]) -> None:
    """Raise WeightsError unless all files are there and whole. Reads only the headers.

    patterns: paths under folder; one that ends in /* needs at least one file in that folder.
    """
    for pattern in patterns:
        files = sorted(folder.glob(pattern))
        if not files:
            raise WeightsError(
                f"The weight file {pattern} is missing from {folder}: check allow_patterns and revision in config.yaml."
            )
        for file in files:
            if file.suffix == ".safetensors":
                _check_length(file)


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

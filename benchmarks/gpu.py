"""Compare ways to bring the same safetensors files from a warm page cache onto a GPU, and ways to start with them.

    python benchmarks/gpu.py FOLDER [--runs 5]

FOLDER is a pipeline in half precision. Runs in the environment of the emitted project. runai-model-streamer,
fastsafetensors and flashpack take part if they are installed there. gpu_start.py holds the ways to start. Without a GPU
it says so and measures nothing. Runs alternate; the numbers are medians. Prints two tables and, as its last line, one
JSON object: seconds of each way.
"""

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gpu_start
import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]
Way = Callable[[Path, torch.device], Tensors]

THREADS = 8
BUFFER_BYTES = 2**26
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}


def to_device(file: Path, device: torch.device) -> Tensors:
    return {name: tensor.to(device) for name, tensor in load_file(file).items()}


def safetensors_device(file: Path, device: torch.device) -> Tensors:
    return load_file(file, device=str(device))


def safetensors_pread(file: Path, device: torch.device) -> Tensors:
    return load_file(file, device=str(device), backend="pread")


def pinned_threads(file: Path, device: torch.device) -> Tensors:
    """Each thread reads through a pinned buffer of its own into one block on the device; tensors are views of it."""
    with file.open("rb", buffering=0) as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_bytes))
        start = 8 + header_bytes
        block = torch.empty(file.stat().st_size - start, dtype=torch.uint8, device=device)

        def copy(first: int) -> None:
            buffer = torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
            for offset in range(first * BUFFER_BYTES, len(block), THREADS * BUFFER_BYTES):
                count = min(BUFFER_BYTES, len(block) - offset)
                read = 0
                while read < count:
                    read += os.preadv(stream.fileno(), [buffer.numpy()[read:count]], start + offset + read)
                block[offset : offset + count].copy_(buffer[:count])

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(copy, range(THREADS)))
    header.pop("__metadata__", None)
    return {
        name: block[slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }


def runai_model_streamer(file: Path, device: torch.device) -> Tensors:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(file)])
        return {name: tensor.to(device) for name, tensor in streamer.get_tensors()}


def fastsafetensors(file: Path, device: torch.device) -> Tensors:
    from fastsafetensors import fastsafe_open

    with fastsafe_open(str(file), device=str(device), nogds=True) as opened:
        return {name: opened.get_tensor(name) for name in sorted(opened.keys())}


def flashpack(file: Path, device: torch.device) -> Tensors:
    """From a file of its own format, that is made once: in an image or a volume it would be made before the start."""
    from flashpack.deserialization import iterate_from_flash_tensor, read_flashpack_file

    storage, meta = read_flashpack_file(str(packed(file)), device=device)
    return dict(iterate_from_flash_tensor(storage, meta))


def packed(file: Path) -> Path:
    from flashpack import pack_to_file

    target = file.with_suffix(".flashpack")
    if not target.is_file():
        pack_to_file(load_file(file), str(target), target_dtype=None)
    return target


WAYS: tuple[Way, ...] = (
    to_device,
    safetensors_device,
    safetensors_pread,
    pinned_threads,
    runai_model_streamer,
    fastsafetensors,
    flashpack,
)


def check(way: Way, files: list[Path], device: torch.device) -> None:
    """Exit with a sentence if way does not bring what is in files."""
    for file in files:
        found, wanted = way(file, device), load_file(file)
        same = found.keys() == wanted.keys() and all(torch.equal(found[name].cpu(), wanted[name]) for name in wanted)
        if not same:
            raise SystemExit(f"{way.__name__} brings other tensors than those in {file}.")


def seconds(way: Way, files: list[Path], device: torch.device) -> float:
    """Return the wall time until all tensors of files are on device. They are freed afterwards."""
    started = time.perf_counter()
    kept = [way(file, device) for file in files]
    if device.type == "cuda":
        torch.cuda.synchronize()
    taken = time.perf_counter() - started
    del kept
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Where the safetensors files are, at any depth.")
    parser.add_argument("--runs", type=int, default=5, help="Of each way, in alternation. Default: 5.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: only to try this script.")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("No CUDA GPU is at hand: nothing was measured.")
        return
    files = sorted(arguments.folder.rglob("*.safetensors"))
    if not files:
        parser.error(f"folder must hold safetensors files, and {arguments.folder} holds none.")
    device = torch.device("cuda:0" if arguments.device == "cuda" else "cpu")
    ways = [way for way in WAYS if installed(way)]
    for way in ways:
        check(way, files, device)
    runs = {way.__name__: [] for way in ways}
    for _ in range(arguments.runs):
        for way in ways:
            runs[way.__name__].append(seconds(way, files, device))
    # A CPU has no context to make.
    starts = {way: [] for way in gpu_start.WAYS if device.type == "cuda" or way != "context_in_a_thread"}
    for _ in range(arguments.runs):
        for way, taken in starts.items():
            taken.append(seconds_of_start(way, arguments.folder, device))
    report(runs, starts, sum(file.stat().st_size for file in files) / 1e9, device)


def seconds_of_start(way: str, folder: Path, device: torch.device) -> float:
    """Return the seconds from the start of a process until it has the pipeline on device."""
    command = [sys.executable, gpu_start.__file__, way, folder, device.type]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{way} ended with {result.returncode}:\n{result.stderr[-2000:]}")
    return float(result.stdout.splitlines()[-1])


def installed(way: Way) -> bool:
    """A way that is named like a package needs it."""
    needs_package = way in (runai_model_streamer, fastsafetensors, flashpack)
    return not needs_package or importlib.util.find_spec(way.__name__) is not None


def report(
    runs: dict[str, list[float]], starts: dict[str, list[float]], gigabytes: float, device: torch.device
) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(f"{gigabytes:.2f} GB from a warm page cache to {name}. Medians, and the range in brackets.")
    for measured in (runs, starts):
        print("\n| way | seconds | GB/s |\n| --- | --- | --- |")
        for way, taken in measured.items():
            median = statistics.median(taken)
            spread = f"{median:.2f} ({min(taken):.2f} to {max(taken):.2f})"
            print(f"| {way} | {spread} | {gigabytes / median:.1f} |")
    for way in WAYS:
        if way.__name__ not in runs:
            print(f"\nNot installed, so not measured: {way.__name__}.")
    print(json.dumps({way: round(statistics.median(taken), 3) for way, taken in {**runs, **starts}.items()}))


if __name__ == "__main__":
    main()

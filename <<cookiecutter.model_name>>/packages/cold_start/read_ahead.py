"""Reads ahead, in a separate process, what the imports of a start (see image_build.py) and then load() will read."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger("uvicorn")

RECORD = Path(__file__).resolve().with_name("imported_files.json")
READERS = 16
WEIGHT_READERS = 4
CGROUPS = Path("/sys/fs/cgroup")
# By controller in /proc/self/cgroup (empty in v2): files for limit and usage, keys of memory.stat for page cache and
# the part of it that cannot be dropped.
CGROUP_FILES = {
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem"),
    "": ("memory.max", "memory.current", "file", "shmem"),
}
CHUNK_BYTES = 2**26
RESERVE_BYTES = 2**31  # memory for the imports, load() and the imports' files


def begin(weights: Iterable[Path]) -> Callable[[], None]:
    """Read the imports' files and then the weights into the page cache while the imports run. Logs what it reads.

    weights: files and folders, in the order in which load() reads them. Files that do not exist yet are skipped: a
    download fills the page cache itself. Returns what to call when the imports are done: the disk is then free.
    """
    files: dict[str, int] = {}
    for file in (file for path in weights for file in [path, *sorted(path.rglob("*"))]):
        with contextlib.suppress(OSError):  # a running download may rename it
            if file.is_file():
                files[str(file)] = file.stat().st_size
    size = sum(files.values())
    try:
        record = json.loads(RECORD.read_text("utf-8"))
    except (OSError, ValueError):
        record = {"summary": "nothing for the imports", "problem": f"no image build made {RECORD}"}
    room = f"{min(size, memory_left()) / 1e9:.2f} of {size / 1e9:.2f} GB of weights"
    slower = f" The imports will be slower, because {record['problem']}." if record["problem"] else ""
    logger.log(logging.WARNING if slower else logging.INFO, f"Reading ahead {record['summary']}, then {room}.{slower}")
    # A separate process: threads here would wait for the GIL, which the imports hold. In the image, Python has started
    # it before the server's imports (see build_commands), and it waits for the list of files.
    command = [sys.executable, "-I", "-S", __file__]
    reader: Any = sys.__dict__.pop("read_ahead", None) or subprocess.Popen(command, stdin=subprocess.PIPE)
    with contextlib.suppress(OSError):  # it may have died
        os.write(reader.stdin.fileno(), json.dumps(files).encode() + b"\n")
    return lambda: threading.Thread(target=reader.communicate, daemon=True).start()


def load_order(folder: Path, components: Collection[str], others: Iterable[str]) -> list[Path]:
    """Return the folders of weights in the order in which load() reads them, that of model_index.json.

    components: those with their own folder beside the pipeline's. others: folders to read after them.
    """
    index: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # missing or incomplete so far
        index = json.loads((folder / "pipeline" / "model_index.json").read_text("utf-8"))
    names = [name if name in components else f"pipeline/{name}" for name in index]
    return [folder / name for name in (*names, *components, *others)]


def read_all() -> None:
    """Read the imports' files in their order, then those that a line of standard input lists, and discard the data."""
    with contextlib.suppress(OSError, ValueError):
        parts = [part for phase in json.loads(RECORD.read_text("utf-8"))["phases"] for part in phase]
        # Many at a time, because each of thousands of small reads waits.
        for thread in _start(READERS, _read_part, iter(parts)):
            thread.join()
    _read_weights(json.loads(sys.stdin.readline() or "{}"))


def _start(readers: int, read: Callable[..., object], waiting: Iterator[Iterable[Any]]) -> list[threading.Thread]:
    # They share one iterator.
    threads = [threading.Thread(target=lambda: [read(*part) for part in waiting]) for _ in range(readers)]
    for thread in threads:
        thread.start()
    return threads


def _read_part(file: str, start: int, end: int) -> None:
    # POSIX_FADV_RANDOM: the kernel's own read-ahead would double the bytes read, for nothing.
    with contextlib.suppress(OSError), open(file, "rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(stream.fileno(), end - start, start)


def _read_weights(files: dict[str, int]) -> None:
    """Read files, given with their sizes, until memory is full: more would evict what load() needs next."""
    parts, before = [], 0
    for file, size in files.items():
        parts += [(file, start, min(start + CHUNK_BYTES, size), before) for start in range(0, size, CHUNK_BYTES)]
        before += size
    waiting = iter(parts)
    _start(1, _send, waiting)
    sys.stdin.read()  # It ends when the imports are done: until then, more readers would take the disk from them.
    _start(WEIGHT_READERS - 1, _send, waiting)


def _send(file: str, start: int, end: int, before: int) -> None:
    if before + end > memory_left():
        return
    # sendfile to /dev/null copies nothing, which leaves the CPU to the imports.
    with contextlib.suppress(OSError), open(file, "rb", buffering=0) as stream, open(os.devnull, "wb") as nowhere:
        while start < end and (sent := os.sendfile(nowhere.fileno(), stream.fileno(), start, end - start)):
            start += sent


def memory_left() -> int:
    """Return how many bytes of weights the page cache can hold, beside the server's own memory.

    The minimum of what this machine and the memory cgroups (v1 or v2) around this process have left, where page cache
    counts as free. No bound if nothing reports memory (not Linux).
    """
    left = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    left.append(sys.maxsize)
    for _, controllers, path in (line.split(":", 2) for line in _lines("/proc/self/cgroup")):
        limit, usage, cache, shared = CGROUP_FILES.get(controllers, ("", "", "", ""))
        root = CGROUPS / controllers
        # In a container, path may be the host's and not exist; root is then the container's own cgroup.
        own = root / path.strip("/")
        for folder in (own, *own.parents):
            with contextlib.suppress(OSError, KeyError, ValueError):  # missing, or no limit: "max"
                stat = dict(line.split() for line in _lines(folder / "memory.stat"))
                used = int((folder / usage).read_text("utf-8")) - int(stat[cache]) + int(stat[shared])
                left.append(int((folder / limit).read_text("utf-8")) - used)
            if folder == root:
                break
    return max(0, min(left) - RESERVE_BYTES)


def _lines(file: str | Path) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(file).read_text("utf-8").splitlines()
    return []


if __name__ == "__main__":
    read_all()

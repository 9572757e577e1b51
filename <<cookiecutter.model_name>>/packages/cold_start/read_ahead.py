"""Reads ahead, in a process of its own, what the imports of a start (see image_build.py) and then load() will read."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger("uvicorn")

RECORD = Path(__file__).resolve().with_name("imported_files.json")
READERS = 16
CGROUPS = Path("/sys/fs/cgroup")
# By controller, as in /proc/self/cgroup (v2 names none): limit, usage, and in memory.stat the page cache and what of it
# cannot be dropped.
CGROUP_FILES = {
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem"),
    "": ("memory.max", "memory.current", "file", "shmem"),
}
CHUNK_BYTES = 2**26
RESERVE_BYTES = 2**31  # of memory, for what the imports and load() will take and what the imports read


def begin(weights: Iterable[Path]) -> None:
    """Bring what the imports read, and then weights, into the page cache, while the imports run. Logs what it reads.

    weights: files and folders, in the order in which load() reads them. What is not there yet is left out: a
    download fills the page cache by itself.
    """
    files: dict[str, int] = {}
    for file in (file for path in weights for file in [path, *sorted(path.rglob("*"))]):
        with contextlib.suppress(OSError):  # a download may rename it meanwhile
            if file.is_file():
                files[str(file)] = file.stat().st_size
    size = sum(files.values())
    try:
        record = json.loads(RECORD.read_text("utf-8"))
    except (OSError, ValueError):
        record = {"summary": "nothing for the imports", "problem": f"the build command that makes {RECORD} did not"}
    room = f"{min(size, memory_left()) / 1e9:.2f} of {size / 1e9:.2f} GB of weights"
    slower = f" The imports will be slower, because {record['problem']}." if record["problem"] else ""
    logger.log(logging.WARNING if slower else logging.INFO, f"Reading ahead {record['summary']}, then {room}.{slower}")
    # A process of its own: threads in this one would wait for the interpreter's lock, which the imports hold.
    # In the image, Python has started it (build_commands) before the server's own imports. It waits for the files.
    reader = sys.__dict__.pop("read_ahead", None) or subprocess.Popen(
        [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE
    )
    threading.Thread(target=reader.communicate, args=(json.dumps(files).encode(),), daemon=True).start()


def load_order(folder: Path, components: Collection[str], others: Iterable[str]) -> list[Path]:
    """Return the folders of the weights in folder, in the order in which load() reads them: that of model_index.json.

    components: those with a folder of their own beside the pipeline's. others: what is read after them.
    """
    index: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # not there yet, or not whole
        index = json.loads((folder / "pipeline" / "model_index.json").read_text("utf-8"))
    names = [name if name in components else f"pipeline/{name}" for name in index]
    return [folder / name for name in (*names, *components, *others)]


def read_all() -> None:
    """Read what the imports read, in their order, and then the files that standard input names. Keep none of it."""
    with contextlib.suppress(OSError, ValueError):
        _read_together([part for phase in json.loads(RECORD.read_text("utf-8"))["phases"] for part in phase])
    _read_weights(json.loads(sys.stdin.read() or "{}"))


def _read_together(parts: list[list[Any]]) -> None:
    # Many at a time, as each of thousands of small reads has to wait. The threads share one iterator.
    waiting = iter(parts)

    def read() -> None:
        for part in waiting:
            _read_part(*part)

    threads = [threading.Thread(target=read) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _read_part(file: str, start: int, end: int) -> None:
    # Random: reading ahead of parts, the kernel would take as much again that nothing needs.
    with contextlib.suppress(OSError), open(file, "rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(stream.fileno(), end - start, start)


def _read_weights(files: dict[str, int]) -> None:
    """Read files, with their sizes, and stop where memory ends: beyond, what load() needs next would be thrown out."""
    ahead = 0
    for file, size in files.items():
        for start in range(0, size, CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, size)
            ahead += end - start
            if ahead > memory_left():
                return
            _send(file, start, end)


def _send(file: str, start: int, end: int) -> None:
    # To /dev/null the kernel sends pages without copying them: that leaves the CPU to the imports.
    with contextlib.suppress(OSError), open(file, "rb", buffering=0) as stream, open(os.devnull, "wb") as nowhere:
        while start < end and (sent := os.sendfile(nowhere.fileno(), stream.fileno(), start, end - start)):
            start += sent


def memory_left() -> int:
    """Return how many bytes of weights the page cache can hold, beside what the server is going to take.

    It is the least that this machine and the memory cgroups around this process leave, v1 or v2. What the page cache
    holds counts as left. Where nothing says how much memory there is (not Linux), there is no bound.
    """
    left = [sys.maxsize]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            left.append(int(line.split()[1]) * 1024)
    for _, controllers, path in (line.split(":", 2) for line in _lines("/proc/self/cgroup")):
        limit, usage, cache, shared = CGROUP_FILES.get(controllers, ("", "", "", ""))
        root = CGROUPS / controllers
        # In a container path may be that of the host: then no such folder is there, and root is the container's own.
        own = root / path.strip("/")
        for folder in (own, *own.parents):
            with contextlib.suppress(OSError, KeyError, ValueError):  # not there, or no limit: "max"
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

"""Reads ahead what a cold start is going to read: what the imports need, as recorded at build, and the weights.

Beside the server it runs as a program of its own: `read`. The build runs `record CLASS` and `startup`, in /app.
"""

import contextlib
import importlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger("uvicorn")

HERE = Path(__file__).resolve().parent
RECORD = HERE / "imported_files.json"
READERS = 16
CGROUPS = Path("/sys/fs/cgroup")
# By controller, as in /proc/self/cgroup (v2 names none): limit, usage, and in memory.stat the page cache and what of it
# cannot be dropped.
CGROUP_FILES = {
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem"),
    "": ("memory.max", "memory.current", "file", "shmem"),
}
# What is imported one after the other: by the server until it listens, by load(), and with the pipeline's class.
PHASES = (
    ("truss_server", "uvicorn.lifespan.on", "uvicorn.protocols.http.h11_impl", "uvicorn.protocols.websockets.auto"),
    ("torch",),
    ("diffusers",),
)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GAP_PAGES = 8  # untouched pages that are read too: quicker than one more read
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
    # In the image, Python has started it (startup()) before the server's own imports. It waits for the files.
    reader = sys.__dict__.pop("read_ahead", None) or subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, "read"], stdin=subprocess.PIPE
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


def record(class_name: str) -> None:
    """Write down what the imports read, phase by phase. A build command in config.yaml does it, in the image."""
    sys.path[0] = os.getcwd()  # it was this file's folder
    own = [*HERE.parent.rglob("*.py*"), *Path.cwd().glob("model/**/*.py*")]
    opened: dict[str, None] = {}  # in the order in which they are needed
    sys.addaudithook(lambda event, arguments: opened.setdefault(str(arguments[0])) if event == "open" else None)
    phases: list[list[Any]] = []
    problem, before = "", dict[str, set[int]]()
    for names in PHASES:
        modules = [importlib.import_module(name) for name in names]
        getattr(modules[0], class_name, None)
        try:
            pages = _touched_pages()
        except OSError as error:
            pages, problem = {}, f"the build could not see which parts of libraries they need ({error})"
        # Some were opened before the hook was there. model/ itself cannot be imported without config.yaml.
        specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
        cached = [getattr(spec, "cached", None) or "" for spec in specs]
        # A size of 0: nothing to read, or a file of /proc, which ends with this process.
        for file in filter(os.path.isfile, [*cached, *opened, *map(str, own)]):
            pages.setdefault(os.path.abspath(file), set(range(-(-os.path.getsize(file) // PAGE_BYTES))))
        phases.append([[file, *part] for file in pages for part in _ranges(pages[file] - before.get(file, set()))])
        before = pages
    parts = [part for phase in phases for part in phase]
    summary = f"{sum(end - start for _, start, end in parts) / 1e9:.2f} GB of {len(parts)} parts for the imports"
    RECORD.write_text(json.dumps({"summary": summary, "problem": problem, "phases": phases}), "utf-8")


def _touched_pages() -> dict[str, set[int]]:
    """Return which pages of each mapped file this process uses. https://docs.kernel.org/admin-guide/mm/pagemap.html"""
    touched: dict[str, set[int]] = {}
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
            addresses, _, offset, _, _, *path = line.split(maxsplit=5)
            if path and os.path.isfile(path[0]):
                first, last = (int(address, 16) // PAGE_BYTES for address in addresses.split("-"))
                entries = memoryview(os.pread(pagemap.fileno(), 8 * (last - first), 8 * first)).cast("Q")
                page = int(offset, 16) // PAGE_BYTES
                touched.setdefault(path[0], set()).update(page + i for i, entry in enumerate(entries) if entry >> 63)
    if not any(touched.values()):
        raise OSError("/proc/self/pagemap says nothing")
    return touched


def _ranges(pages: set[int]) -> list[list[int]]:
    """Return the parts of a file, in bytes, that hold pages. Small gaps between them are read too."""
    ranges: list[list[int]] = []
    for page in sorted(pages):
        if not ranges or page - ranges[-1][1] > GAP_PAGES:
            ranges.append([page, page])
        ranges[-1][1] = page + 1
    return [[start * PAGE_BYTES, end * PAGE_BYTES] for start, end in ranges]


def startup() -> None:
    """Print a line for a .pth file. Every Python in the image runs it first of all, so it asks for the server."""
    print(
        f'import sys; sys.orig_argv[-1:] == ["{Path.cwd()}/main.py"] and setattr(sys, "read_ahead", '
        f'__import__("subprocess").Popen([sys.executable, "-I", "-S", "{__file__}", "read"], stdin=-1))'
    )


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {"read": read_all, "record": record, "startup": startup}
    commands[sys.argv[1]](*sys.argv[2:])

"""Records what the imports of a start read. Run in /app during the image build, with the pipeline's class name."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cold_start.lean_imports import import_diffusers
from cold_start.read_ahead import RECORD

PACKAGES = Path(__file__).resolve().parent
# What the server imports until it listens.
SERVER = ("truss_server", "uvicorn.lifespan.on", "uvicorn.protocols.http.h11_impl", "uvicorn.protocols.websockets.auto")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GAP_PAGES = 8  # untouched pages to read as well, which is faster than a separate read


def record(class_name: str) -> None:
    """Record what the imports read, phase by phase. A build command in config.yaml runs this in the image."""
    # In a process of its own, as this one records what a start reads.
    code = "from cold_start import lean_imports; lean_imports.keep_names()"
    kept = subprocess.run([sys.executable, "-c", code], cwd=PACKAGES).returncode == 0
    sys.path[0] = os.getcwd()  # was this file's folder
    own = [*PACKAGES.rglob("*.py*"), *Path.cwd().glob("model/**/*.py*")]
    opened: dict[str, None] = {}  # in the order in which they are needed
    sys.addaudithook(lambda event, arguments: opened.setdefault(str(arguments[0])) if event == "open" else None)
    phases: list[list[Any]] = []
    problem, before = "" if kept else "the build could not keep the names of transformers", dict[str, set[int]]()
    # What is imported one after the other: by the server, by load(), and with the pipeline's class.
    for begin in (
        lambda: [importlib.import_module(name) for name in SERVER],
        lambda: importlib.import_module("torch"),
        lambda: import_diffusers(class_name),
    ):
        begin()
        try:
            pages = _touched_pages()
        except OSError as error:
            pages, problem = {}, f"the build could not see which parts of libraries they need ({error})"
        # Includes modules imported before the hook. model/ itself cannot be imported without config.yaml.
        specs = (getattr(module, "__spec__", None) for module in list(sys.modules.values()))
        cached = [getattr(spec, "cached", None) or "" for spec in specs]
        # A size of 0 means nothing to read, or a file of /proc, which ends with this process.
        for file in filter(os.path.isfile, [*cached, *opened, *map(str, own)]):
            pages.setdefault(os.path.abspath(file), set(range(-(-os.path.getsize(file) // PAGE_BYTES))))
        phases.append([[file, *part] for file in pages for part in _ranges(pages[file] - before.get(file, set()))])
        before = pages
    parts = [part for phase in phases for part in phase]
    summary = f"{sum(end - start for _, start, end in parts) / 1e9:.2f} GB of {len(parts)} parts for the imports"
    RECORD.write_text(json.dumps({"summary": summary, "problem": problem, "phases": phases}), "utf-8")


def _touched_pages() -> dict[str, set[int]]:
    """Return the pages of each mapped file that are in use. https://docs.kernel.org/admin-guide/mm/pagemap.html"""
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
        raise OSError("/proc/self/pagemap is empty")
    return touched


def _ranges(pages: set[int]) -> list[list[int]]:
    """Return the byte ranges of a file that cover the pages, joined over small gaps."""
    ranges: list[list[int]] = []
    for page in sorted(pages):
        if not ranges or page - ranges[-1][1] > GAP_PAGES:
            ranges.append([page, page])
        ranges[-1][1] = page + 1
    return [[start * PAGE_BYTES, end * PAGE_BYTES] for start, end in ranges]


if __name__ == "__main__":
    record(sys.argv[1])

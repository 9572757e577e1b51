"""Measure the seconds from the last downloaded byte to a ready model, with Truss's real downloader.

    PROJECT_PYTHON=... python benchmarks/last_byte.py CACHE [--rate 300] [--runs 3]

CACHE holds full-size weights of sdxl, as `make bench` makes them. A file server on this machine sends them at --rate MB
a second in all, and the server of the default project fetches them while it starts. Needs root. Prints the medians.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml
from cookiecutter.main import cookiecutter

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
import test_download  # noqa: E402
from coldstart import DROP_CACHES, REQUEST, logged_phases  # noqa: E402
from file_server import pointer, wanted  # noqa: E402
from test_download import PREPARE, local_server  # noqa: E402

CHUNK = 2**22


class Throttled(ThreadingHTTPServer):
    """Sends ranges of the files in a folder, and remembers when the last byte left."""

    daemon_threads = True
    request_queue_size = 512  # the downloader opens many connections at once

    def __init__(self, folder: Path, rate: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.rate = folder, rate
        self.turn, self.next, self.last = threading.Lock(), 0.0, 0.0

    def wait(self, count: int) -> None:
        with self.turn:
            self.next = max(self.next, time.perf_counter()) + count / self.rate
            until = self.next
        time.sleep(max(until - time.perf_counter(), 0))

    def manifest(self) -> dict[str, Any]:
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file()]
        sizes = {file.relative_to(self.folder).as_posix(): file.stat().st_size for file in files}
        url = f"http://127.0.0.1:{self.server_port}"
        return {"pointers": [pointer(url, name, size, "0" * 64) for name, size in sizes.items()]}


class Handler(BaseHTTPRequestHandler):
    server: Throttled

    def do_GET(self) -> None:
        file = self.server.folder / self.path.removeprefix("/")
        size = file.stat().st_size
        first, last = wanted(self, size)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.flush()
        with file.open("rb") as stream:
            while first <= last:
                count = min(CHUNK, last + 1 - first)
                self.server.wait(count)
                first += self.connection.sendfile(stream, first, count)
        self.server.last = time.perf_counter()

    def log_message(self, *_: Any) -> None:
        pass


def run(prepared: Path, weights: Path, rate: float) -> dict[str, float]:
    """One cold start. Returns seconds."""
    with tempfile.TemporaryDirectory(dir=prepared) as name, Throttled(weights, rate) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        folder, port = Path(name), local_server.free_port()
        app = shutil.copytree(prepared / "app", folder / "app")
        config = yaml.safe_load((app / "config.yaml").read_text("utf-8"))
        config["model_metadata"]["pipeline"]["cpu_dtype"] = "float16"  # as on a GPU
        (app / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
        environment = {**os.environ, **config["environment_variables"], "HOME": "/app"}
        environment["INFERENCE_SERVER_PORT"] = str(port)
        os.sync()
        DROP_CACHES.write_text("3")
        began, url = time.perf_counter(), f"http://127.0.0.1:{port}"
        with (folder / "log").open("w") as log:
            command = test_download.command(files, folder, "main.py")
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            local_server.wait_until_ready(process, url)
            ready = time.perf_counter()
            httpx.post(url + local_server.PREDICT, json=REQUEST, timeout=1200).raise_for_status()
            first = time.perf_counter()
        except RuntimeError as error:
            sys.exit(f"{error}\n{(folder / 'log').read_text()[-3000:]}")
        finally:
            local_server.stop(process)
        phases = logged_phases((folder / "log").read_text("utf-8"))
        found = {"last byte": files.last - began, "to ready": ready - files.last, "to the image": first - files.last}
        return {**found, "read_weights": phases["read_weights"], "wait_for_weights": phases["wait_for_weights"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=lambda text: Path(text).absolute(), metavar="CACHE")
    parser.add_argument("--rate", type=float, default=300, help="MB a second. Default: 300.")
    parser.add_argument("--runs", type=int, default=3, help="Default: 3.")
    arguments = parser.parse_args()
    if test_download.WHY_NOT:
        sys.exit(test_download.WHY_NOT)
    with tempfile.TemporaryDirectory(dir=arguments.cache) as name:
        folder = Path(name)
        project = cookiecutter(str(HERE.parent), no_input=True, output_dir=folder)
        python = os.environ["PROJECT_PYTHON"]
        subprocess.run([python, "-c", PREPARE, folder], cwd=project, check=True)
        weights = folder / "full"
        for part in ("pipeline", "vae"):
            shutil.copytree(arguments.cache / "sdxl" / part, weights / part, copy_function=os.link)
        runs = [run(folder, weights, arguments.rate * 1e6) for _ in range(arguments.runs)]
    for each in runs:
        print(json.dumps({name: round(seconds, 2) for name, seconds in each.items()}), file=sys.stderr)
    print(" | ".join(f"{name} {statistics.median(each[name] for each in runs):.1f} s" for name in runs[0]))


if __name__ == "__main__":
    main()

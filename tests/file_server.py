"""A loopback file server for the weights, and the manifest that makes the real truss_transfer fetch them from it."""

import contextlib
import dataclasses
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# Where Truss puts the volumes of model_cache.
CACHE = "/app/model_cache"


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answer to one range. length: announced bytes; total: announced size of the whole file."""

    body: bytes
    length: int
    total: int
    status: int = 206


def pointer(url: str, name: str, size: int, tag: str) -> dict[str, Any]:
    """Return a file's entry in the manifest. tag: its etag."""
    resolution = {"resolution_type": "http", "url": f"{url}/{name}", "expiration_timestamp": 4_000_000_000}
    named = {"uid": f"owner/name:commit:{name}", "file_name": f"{CACHE}/{name}"}
    return {"resolution": resolution, **named, "hashtype": "etag", "hash": tag, "size": size}


def wanted(request: BaseHTTPRequestHandler, size: int) -> tuple[int, int]:
    """Return the first and the last byte that are asked for of a file."""
    # Without a range it wants all: that is what truss_transfer tries after an answer other than 206.
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["Range"] or f"bytes=0-{size - 1}")
    return int(asked[1]), int(asked[2])


Fault = Callable[[Reply], Reply]


@dataclasses.dataclass
class FileServer:
    """A folder over HTTP. The last byte of the file `held` waits for release."""

    folder: Path
    url: str = ""
    faults: dict[str, Fault] = dataclasses.field(default_factory=dict)
    held: str = ""
    on_request: Callable[[], None] = lambda: None
    release: threading.Event = dataclasses.field(default_factory=threading.Event)
    all_but_the_last_byte: threading.Event = dataclasses.field(default_factory=threading.Event)

    def files(self) -> dict[str, bytes]:
        paths = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    def manifest(self) -> dict[str, Any]:
        """Return what `truss image build-context` writes for model_cache: the etags of the real files among it."""
        return {
            "pointers": [
                pointer(self.url, name, len(content), etag(name, content)) for name, content in self.files().items()
            ]
        }

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.on_request()
        name = request.path.removeprefix("/")
        content = (self.folder / name).read_bytes()
        first, last = wanted(request, len(content))
        body = content[first : last + 1]
        reply = self.faults.get(name, lambda reply: reply)(Reply(body, len(body), len(content)))
        request.send_response(reply.status)
        request.send_header("Content-Range", f"bytes {first}-{last}/{reply.total}")
        request.send_header("Content-Length", str(reply.length))
        request.end_headers()
        if name == self.held and last == len(content) - 1:
            request.wfile.write(reply.body[:-1])
            self.all_but_the_last_byte.set()
            self.release.wait(timeout=300)
            request.wfile.write(reply.body[-1:])
            return
        request.wfile.write(reply.body)
        request.close_connection = len(reply.body) < reply.length


def etag(name: str, content: bytes) -> str:
    """Return Hugging Face's etag of a file: the SHA-256 of a large one, the git object of a small one."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def serve(folder: Path, **options: Any) -> Iterator[FileServer]:
    """Serve folder on a free loopback port. options: fields of FileServer."""
    files = FileServer(folder, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            files.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        files.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield files
        finally:
            files.release.set()
            http.shutdown()

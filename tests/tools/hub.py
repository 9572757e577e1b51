"""What `fast-truss doctor` asks Hugging Face for, on this machine."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Hub(http.server.ThreadingHTTPServer):
    """What doctor asks Hugging Face for. gone: a file that is missing, * for the repository, or gated."""

    gone = ""
    files = ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt")
    weights = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def names(self) -> list[str]:
        weights = [f"{name}.fp16.safetensors" for name in self.weights]
        configs = [f"{Path(name).parent}/config.json" for name in self.weights]
        return [name for name in (*self.files, *weights, *configs) if name != self.gone]


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        # A browser that still polls a server which had this port before asks for other paths.
        if self.path.startswith("/api/models/"):
            self.server.tokens.add(self.headers.get("Authorization", ""))
        listed = [{"rfilename": name} for name in self.server.names()]
        body = json.dumps({"id": "x/y", "sha": "a" * 40, "siblings": listed}).encode()
        self.answer(404 if self.server.gone == "*" else 200, {"X-Error-Code": "RepoNotFound"}, body)

    def do_HEAD(self) -> None:
        headers = {"ETag": '"x"', "X-Repo-Commit": "a" * 40, "X-Error-Code": "GatedRepo"}
        self.answer(403 if self.server.gone == "gated" else 200, headers, b"")

    def answer(self, code: int, headers: dict[str, str], body: bytes) -> None:
        if code == 200:
            headers.pop("X-Error-Code", None)
        self.send_response(code)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()

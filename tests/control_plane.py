"""A control plane on this machine that the real `truss push` can push to, and what reached it.

It answers GraphQL itself. Uploads go to moto's S3: Truss hands the credentials that it gets to boto3 as
they are, so an endpoint_url among them decides where the upload goes.
"""

import base64
import contextlib
import dataclasses
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

KEY = "good-key"
BUCKET = "uploads"


@dataclasses.dataclass
class ControlPlane:
    """url: the remote that Truss is given. created: the arguments of each model that was made."""

    url: str = ""
    credentials: dict[str, str] = dataclasses.field(default_factory=dict)
    validated: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    created: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    uploads: int = 0
    model_id: str = "model1"
    version_id: str = "v1"
    # Statuses of the deployment, one for each poll by Truss; the last one stays.
    statuses: list[str] = dataclasses.field(default_factory=lambda: ["ACTIVE"])
    # Names of the models that were pushed before.
    models: list[str] = dataclasses.field(default_factory=list)

    def archive(self, key: str) -> bytes:
        return _s3(self.credentials).get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return data or errors, as GraphQL does. The first field names the query."""
        name = re.search(r"\{\s*(\w+)", query)[1]
        arguments = dict(re.findall(r'(\w+): "([^"]*)"', query) + re.findall(r"(\w+): (true|false)", query))
        if name == "teams":
            return {"data": {"teams": [{"id": "team1", "name": "Team", "default": True}]}}
        if name == "models":
            team = {"id": "team1", "name": "Team"}
            return {"data": {"models": [{"id": self.model_id, "name": model, "team": team} for model in self.models]}}
        if name == "truss_validation":
            self.validated.append(_decoded(arguments["config"]))
            return {"data": {name: {"success": True, "details": "{}"}}}
        if name == "model_s3_upload_credentials":
            self.uploads += 1
            return {"data": {name: {"s3_bucket": BUCKET, "s3_key": f"models/{self.uploads}.tgz", **self.credentials}}}
        if name in ("create_model_from_truss", "create_model_version_from_truss"):
            raw = base64.b64decode(variables["rawConfig"])
            self.created.append({**arguments, "config": _decoded(arguments["config"]), "raw_config": raw})
            oracle = {"id": self.model_id, "name": arguments.get("name", ""), "hostname": self.url}
            version = {"id": self.version_id, "oracle": oracle, "instance_type": {"name": "T4"}}
            return {"data": {name: {"model_version": version}}}
        return {"errors": [{"message": f"Cannot query field {name}."}]}

    @property
    def deployment_path(self) -> str:
        return f"/v1/models/{self.model_id}/deployments/{self.version_id}"

    def deployment(self) -> dict[str, Any]:
        """Return the deployment as the REST API reports it."""
        status = self.statuses[0] if len(self.statuses) == 1 else self.statuses.pop(0)
        return {"id": self.version_id, "model_id": self.model_id, "status": status}


def _decoded(config: str) -> dict[str, Any]:
    return json.loads(base64.b64decode(config))


def _s3(credentials: dict[str, str]) -> Any:
    return boto3.client("s3", region_name="us-east-1", **credentials)


@contextlib.contextmanager
def control_plane() -> Iterator[ControlPlane]:
    plane = ControlPlane()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(lambda: plane.answer(body["query"], body.get("variables", {})), self.path == "/graphql/")

        def do_GET(self) -> None:
            self.answer(plane.deployment, self.path == plane.deployment_path)

        def answer(self, found: Callable[[], dict[str, Any]], there: bool) -> None:
            if self.headers["Authorization"] != f"Bearer {KEY}":
                return self.reply(403, {"detail": "The API key is not valid."})
            if not there:
                return self.reply(404, {"detail": "Not found."})
            self.reply(200, found())

        def reply(self, status: int, content: dict[str, Any]) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            """Log nothing: pytest shows Truss's output."""

    s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3.start()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = "http://{}:{}".format(*s3.get_host_and_port())
        keys = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key", "aws_session_token"), "fake")
        plane.credentials = {**keys, "endpoint_url": endpoint}
        plane.url = f"http://127.0.0.1:{server.server_port}"
        _s3(plane.credentials).create_bucket(Bucket=BUCKET)
        yield plane
    finally:
        server.shutdown()
        server.server_close()
        s3.stop()

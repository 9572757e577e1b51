"""A platform with Baseten's paths. Its one replica is the real local Truss server of a project.

    PROJECT_PYTHON tests/fake_baseten.py PROJECT FOLDER

It makes the app and tiny weights in FOLDER, prints its port, and scales to zero when nobody asks. The
model is `model`, its deployment `dep1`, the key `good-key`. /_platform is for tests: GET tells how often
the replica was started; POST sets faults (answers of the next predicts), deactivated, stuck (a wake that
never becomes ready) and park_seconds (how long a predict waits for a replica)
and provision_seconds (how long a machine takes to be there).
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

KEY = "good-key"
PROJECT, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(PROJECT))
import local_server  # noqa: E402


class Autoscaling(BaseModel):
    """Baseten's settings and defaults; unknown fields are refused. Times in seconds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    min_replica: int = Field(0, ge=0, le=1)
    max_replica: int = Field(1, ge=1, le=1)
    autoscaling_window: int = Field(60, ge=10, le=3600)
    scale_down_delay: int = Field(900, ge=0, le=3600)
    concurrency_target: int = Field(1, ge=1)
    target_utilization_percentage: int = Field(70, ge=1, le=100)


class Platform:
    """The state of the one deployment."""

    def __init__(self) -> None:
        self.status = "SCALED_TO_ZERO"
        self.starts = 0
        self.autoscaling = Autoscaling()
        self.faults: list[int] = []
        self.deactivated = False
        self.stuck = False
        self.park_seconds = 600.0
        self.provision_seconds = 0.0
        self.in_flight = 0
        self.last_request = 0.0
        self.ready = asyncio.Event()
        self.url = ""
        self.process: Any = None
        self.starting: asyncio.Task | None = None

    def wake(self) -> None:
        self.last_request = time.monotonic()
        if self.status != "SCALED_TO_ZERO":
            return
        self.status = "WAKING_UP"
        self.starts += 1
        self.starting = asyncio.create_task(self.start())

    async def start(self) -> None:
        if self.stuck:
            return
        await asyncio.sleep(self.provision_seconds)
        port = local_server.free_port()
        self.url = f"http://127.0.0.1:{port}"
        with (FOLDER / f"replica-{self.starts}.log").open("w") as log:
            self.process = local_server.start(FOLDER / "app", port, stdout=log, stderr=log)
        self.status = "LOADING_MODEL"
        async with httpx.AsyncClient() as http:
            while self.process.poll() is None:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(self.url + local_server.READY)).is_success:
                        self.status = "ACTIVE"
                        self.last_request = time.monotonic()
                        self.ready.set()
                        return
                await asyncio.sleep(0.02)
        self.status = "FAILED"

    def stop(self) -> None:
        self.ready.clear()
        if self.process:
            local_server.stop(self.process)
        self.process = None
        self.status = "SCALED_TO_ZERO"

    async def scale_to_zero(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            idle = time.monotonic() - self.last_request
            waiting = self.in_flight or self.autoscaling.min_replica or idle < self.autoscaling.scale_down_delay
            if self.status == "ACTIVE" and not waiting:
                await asyncio.to_thread(self.stop)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.platform = Platform()
    scaler = asyncio.create_task(app.state.platform.scale_to_zero())
    yield
    scaler.cancel()
    app.state.platform.stop()


def check_key(request: Request) -> None:
    if request.url.path.startswith("/_platform"):
        return
    if request.headers.get("Authorization") != f"Api-Key {KEY}":
        raise HTTPException(401, "Invalid API key.")


app = FastAPI(lifespan=lifespan, dependencies=[Depends(check_key)])


@app.get("/_platform")
async def tell(request: Request) -> dict[str, Any]:
    platform = request.app.state.platform
    return {"starts": platform.starts, "status": platform.status}


@app.post("/_platform")
async def change(request: Request) -> dict[str, Any]:
    platform = request.app.state.platform
    changes = await request.json()
    if changes.pop("scale_to_zero", False):
        await asyncio.to_thread(platform.stop)
    for name, value in changes.items():
        setattr(platform, name, value)
    return changes


TARGETS = (
    "/production/{action}",
    "/environments/production/{action}",
    "/development/{action}",
    "/deployment/dep1/{action}",
)


async def invoke(action: str, model: str, request: Request) -> Response:
    platform = request.app.state.platform
    if model != "model" or platform.deactivated or action not in ("wake", "predict"):
        raise HTTPException(404, "Model not found.")
    if action == "wake":
        platform.wake()
        return JSONResponse({}, 202)
    if platform.faults:
        return fault(platform.faults.pop(0))
    platform.in_flight += 1
    try:
        platform.wake()
        try:
            await asyncio.wait_for(platform.ready.wait(), platform.park_seconds)
        except TimeoutError:
            raise HTTPException(500, "The request was parked for too long.") from None
        async with httpx.AsyncClient(timeout=600) as http:
            answer = await http.post(platform.url + local_server.PREDICT, content=await request.body())
        return Response(answer.content, answer.status_code, media_type="application/json")
    finally:
        platform.in_flight -= 1
        platform.last_request = time.monotonic()


def fault(code: int) -> Response:
    """code: an HTTP status, or 0 for an answer that breaks off in the middle."""
    if code:
        return JSONResponse({"error": "a fault that the test asked for"}, code, headers={"Retry-After": "0"})

    async def half() -> AsyncIterator[bytes]:
        yield b'{"images": ['

    return StreamingResponse(half(), headers={"Content-Length": "1000"}, media_type="application/json")


for path in TARGETS:
    app.add_api_route("/model-{model}" + path, invoke, methods=["POST"])


def deployment(platform: Platform) -> dict[str, Any]:
    return {
        "id": "dep1",
        "status": "DEACTIVATED" if platform.deactivated else platform.status,
        "active_replica_count": int(platform.status == "ACTIVE"),
        "autoscaling_settings": platform.autoscaling.model_dump(),
    }


@app.get("/v1/models/{model}/{kind}/{name}")
async def describe(model: str, kind: str, name: str, request: Request) -> dict[str, Any]:
    known = {"environments": ("production",), "deployments": ("dep1", "development", "production")}
    if model != "model" or name not in known.get(kind, ()):
        raise HTTPException(404, "Not found.")
    found = deployment(request.app.state.platform)
    return {"name": name, "current_deployment": found} if kind == "environments" else found


@app.patch("/v1/models/model/deployments/{name}/autoscaling_settings")
async def autoscale(name: str, request: Request) -> dict[str, str]:
    platform = request.app.state.platform
    try:
        platform.autoscaling = Autoscaling(**{**platform.autoscaling.model_dump(), **await request.json()})
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    return {"status": "ACCEPTED"}


if __name__ == "__main__":
    weights = local_server.find_weights("tiny", FOLDER)
    local_server.build_app(FOLDER / "app", weights)
    port = local_server.free_port()
    print(port, flush=True)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")

"""A platform with Baseten's paths. Its one replica is a server of the emitted model: see model_servers.py.

    python tests/fake_baseten.py PROJECT
    PROJECT_PYTHON=... python tests/fake_baseten.py PROJECT FOLDER

With FOLDER it is the real one, with tiny weights there. It prints its port, and scales to zero when nobody asks.
Answers are objects of the SDK's own models, and each request is parsed by them. The model is `model`, its deployment
`dep1`, its environments production and staging, the key `good-key`. /_platform is for tests: GET tells how often the
replica was started and what was asked; POST changes the state: see CLEAN in fake_deployment.py.
"""

import asyncio
import contextlib
import copy
import datetime
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import model_servers
import uvicorn
from baseten.client import inferenceapi as inference
from baseten.client import managementapi as sdk
from fake_deployment import CLEAN, T4, Replica
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

KEY = "good-key"
PROJECT = Path(sys.argv[1])
FOLDER = Path(sys.argv[2]) if sys.argv[2:] else None
model_servers.use(PROJECT)
import local_server  # noqa: E402

if FOLDER:
    # It starts everything with the Python that it runs on. That must be the image's here.
    local_server.sys = SimpleNamespace(executable=os.environ["PROJECT_PYTHON"])

ENVIRONMENTS = ("production", "staging")
# What the paths of each kind of target begin with, on the host of the model and on that of an environment.
TARGETS = (
    "/model-model/production",
    "/model-model/environments/{environment}",
    "/model-model/development",
    "/model-model/deployment/dep1",
    "/model-model-{environment}",
)


def start_server(replica: Replica) -> Any:
    if FOLDER:
        return model_servers.RealServer(local_server, FOLDER, replica.starts)
    return model_servers.InstantServer(local_server.free_port(), replica.load_seconds, replica.image_seconds)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.replica = Replica(start_server)
    scaler = asyncio.create_task(app.state.replica.scale_to_zero())
    yield
    scaler.cancel()
    await app.state.replica.stop()
    await asyncio.gather(*app.state.replica.ending)


def check_key(request: Request) -> None:
    if request.url.path.startswith("/_platform"):
        return
    if request.headers.get("Authorization") not in (f"Api-Key {KEY}", f"Bearer {KEY}"):
        raise HTTPException(401, "Invalid API key.")


app = FastAPI(lifespan=lifespan, dependencies=[Depends(check_key)])


@app.exception_handler(ValueError)
async def refuse(request: Request, error: ValueError) -> JSONResponse:
    """pydantic's ValidationError is one: a request that the SDK's own model does not take."""
    return JSONResponse({"error": str(error)}, 400)


@app.middleware("http")
async def management_faults(request: Request, call_next: Any) -> Response:
    replica = request.app.state.replica
    if request.url.path.startswith("/v1/"):
        replica.asked += 1
        if request.method != "GET":
            replica.changed.append(f"{request.method} {request.url.path}")
        if replica.management_faults:
            return fault(replica.management_faults.pop(0))
    return await call_next(request)


@app.get("/_platform")
async def tell(request: Request) -> dict[str, Any]:
    replica = request.app.state.replica
    names = (
        "starts",
        "status",
        "asked",
        "settings",
        "autoscaling",
        "url",
        "changed",
        "replica_id",
        "predicts",
    )
    return {name: getattr(replica, name) for name in names}


@app.post("/_platform")
async def change(request: Request) -> dict[str, Any]:
    replica = request.app.state.replica
    changes = await request.json()
    if changes.pop("scale_to_zero", False):
        await replica.stop()
    if changes.pop("clean", False):
        changes = {**copy.deepcopy(CLEAN), **changes}
    for name, value in changes.items():
        assert hasattr(replica, name), name
        setattr(replica, name, value)
    return changes


def answer(made: BaseModel, status: int = 200) -> JSONResponse:
    return JSONResponse(made.model_dump(mode="json"), status)


def fault(wanted: Any) -> Response:
    """wanted: a status of the platform; ["model", status, reason]; 0: an answer that breaks off; -1: without end.

    A text: what comes before an answer in events breaks off.
    """
    if isinstance(wanted, list):
        headers = {"X-BASETEN-ERROR-SOURCE": "04", "X-BASETEN-ERROR-CODE": "600"}
        return JSONResponse({"error": wanted[2]}, wanted[1], headers=headers)
    if isinstance(wanted, str):
        return StreamingResponse(iter([wanted]), headers={"Content-Length": "1000"}, media_type="text/event-stream")
    if wanted > 0:
        return JSONResponse({"error": "a fault that the test asked for"}, wanted, headers={"Retry-After": "0"})

    async def half() -> AsyncIterator[bytes]:
        yield b'{"images": ['
        while wanted < 0:
            await asyncio.sleep(1)

    return StreamingResponse(half(), headers={"Content-Length": "1000"}, media_type="application/json")


def check_target(request: Request) -> Replica:
    replica = request.app.state.replica
    if replica.deactivated or request.path_params.get("environment", "production") not in ENVIRONMENTS:
        raise HTTPException(404, "Model not found.")
    return replica


async def wake(request: Request) -> Response:
    check_target(request).wake()
    return JSONResponse({}, 202)


async def predict(request: Request) -> Response:
    replica = check_target(request)
    body = await request.body()
    inference.PredictInput.model_validate_json(body)
    if replica.faults:
        return fault(replica.faults.pop(0))
    replica.in_flight += 1
    replica.predicts += 1
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(done, replica)
        replica.wake()
        try:
            await asyncio.wait_for(replica.ready.wait(), replica.park_seconds)
        except TimeoutError:
            raise HTTPException(500, "The request was parked for too long.") from None
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=600))
        asked = http.build_request("POST", replica.url + local_server.PREDICT, content=body)
        got = await http.send(asked, stream=True)
        stack.push_async_callback(got.aclose)
        kept = {name: value for name, value in got.headers.items() if name.startswith("x-baseten")}
        kept["content-type"] = got.headers["content-type"]
        if not kept["content-type"].startswith("text/event-stream"):
            return Response(await got.aread(), got.status_code, headers=kept)
        return StreamingResponse(passed_on(got, stack.pop_all()), headers=kept)


async def passed_on(got: httpx.Response, stack: contextlib.AsyncExitStack) -> AsyncIterator[bytes]:
    """Pass on each part as it comes. It leaves the replica when the client leaves."""
    async with stack:
        async for part in got.aiter_bytes():
            yield part


def done(replica: Replica) -> None:
    replica.in_flight -= 1
    replica.last_request = time.monotonic()


async def sync(request: Request) -> Response:
    """Pass a GET on to the server of the model, as Baseten's documents say of /sync/."""
    replica = check_target(request)
    if not replica.has_schema:
        raise HTTPException(404, "Not found.")
    replica.wake()
    await replica.ready.wait()
    async with httpx.AsyncClient(timeout=60) as http:
        got = await http.get(f"{replica.url}/{request.path_params['path']}")
    return Response(got.content, got.status_code, media_type=got.headers.get("content-type"))


for prefix in TARGETS:
    app.add_api_route(f"{prefix}/sync/{{path:path}}", sync, methods=["GET"])
    for action in (wake, predict):
        app.add_api_route(f"{prefix}/{action.__name__}", action, methods=["POST"])


@app.get("/v1/models/{model}/environments/{name}")
async def describe_environment(model: str, name: str, request: Request) -> Response:
    if model != "model" or name not in ENVIRONMENTS:
        raise HTTPException(404, "Not found.")
    return answer(request.app.state.replica.describe_environment(name))


@app.patch("/v1/models/model/environments/{name}")
async def change_environment(name: str, request: Request) -> Response:
    replica = request.app.state.replica
    asked = sdk.UpdateEnvironmentRequest.model_validate_json(await request.body())
    told = replica.change(asked.autoscaling_settings).model_dump()
    made = sdk.UpdateEnvironmentResponse(environment=replica.describe_environment(name), **told)
    hidden = set(told) if replica.hides_deprecated else None
    return JSONResponse(made.model_dump(mode="json", exclude=hidden))


@app.delete("/v1/models/model/deployments/dep1/replicas/{replica_id}")
async def end_replica(replica_id: str, request: Request) -> Response:
    if not await request.app.state.replica.end_replica(replica_id):
        raise HTTPException(404, "Not found.")
    return answer(sdk.TerminateReplicaResponse())


@app.get("/v1/models/{model}")
async def describe_model(model: str) -> Response:
    if model != "model":
        raise HTTPException(404, "Not found.")
    now, one = (
        datetime.datetime.now(datetime.UTC),
        {"production_deployment_id": "dep1", "development_deployment_id": None},
    )
    more = {"id": model, "created_at": now, "name": "Lighthouse", "deployments_count": 1, "team_name": "team"}
    return answer(sdk.Model(**one, **more, instance_type_name="T4"))


@app.get("/v1/models/model/deployments")
async def deployments(request: Request) -> Response:
    made = request.app.state.replica.describe("first", "production")
    return answer(sdk.Deployments(deployments=[made]))


@app.get("/v1/models/{model}/deployments/{name}")
async def describe(model: str, name: str, request: Request) -> Response:
    if model != "model" or name not in ("dep1", "development", "production"):
        raise HTTPException(404, "Not found.")
    return answer(request.app.state.replica.describe(name, None))


@app.patch("/v1/models/model/deployments/{name}/autoscaling_settings")
async def autoscale(name: str, request: Request) -> Response:
    asked = sdk.UpdateAutoscalingSettings.model_validate_json(await request.body())
    return answer(request.app.state.replica.change(asked))


@app.get("/v1/models/model/{kind}/{name}/{record}")
@app.get("/v1/models/model/{kind}/{name}/startups/{record}")
async def startups(kind: str, name: str, record: str, request: Request) -> Response:
    replica = request.app.state.replica
    if not replica.has_startups or record not in ("startups", "summary"):
        raise HTTPException(404, "Not found.")
    title = f"GetModels{kind.title()}Startups{'Summary' if record == 'summary' else ''}Params"
    # These two have no default in the SDK, and the API needs neither.
    params = getattr(sdk, title)(**{"sort_by": None, "direction": None, **request.query_params})
    return answer(replica.startups_summary(params) if record == "summary" else replica.startups(params))


@app.get("/v1/secrets")
async def secrets(request: Request) -> Response:
    now = datetime.datetime.now(datetime.UTC)
    names = request.app.state.replica.secrets
    return answer(sdk.Secrets(secrets=[sdk.Secret(id=n, created_at=now, name=n, team_name="team") for n in names]))


@app.get("/v1/instance_types")
async def instance_types() -> Response:
    return answer(sdk.InstanceTypes(instance_types=[T4]))


@app.get("/v1/instance_type_prices")
async def prices() -> Response:
    priced = sdk.InstanceTypeWithPrice(instance_type=T4, price=0.01)
    return answer(sdk.InstanceTypePrices(instance_types=[priced]))


@app.get("/v1/users/me")
async def user() -> Response:
    return answer(sdk.UserInfo(user_id="u1", workspace_name="a workspace"))


if __name__ == "__main__":
    if FOLDER:
        local_server.build_app(FOLDER / "app", local_server.find_weights("tiny", FOLDER))
    port = local_server.free_port()
    print(port, flush=True)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")

"""OpenAI's Images API in front of a deployment: see docs/gateway.md. Fields it does not know go to the model as is."""

import asyncio
import base64
import contextlib
import hmac
import io
import ipaddress
import json
import logging
import math
import os
import re
import socket
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import typer
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from fast_truss import AsyncClient, ClientError, Event, InvalidInput, NotFound, RequestRefused, TimedOut, image_bytes

KEY = "FAST_TRUSS_GATEWAY_KEY"
KINDS = {"/v1/images/generations": "image_generation", "/v1/images/edits": "image_edit"}
MAX_BODY, MASK_PIXELS = 64_000_000, 50_000_000
# Proxies cut connections that are silent for a minute.
SILENT_SECONDS = 15.0
# Who asks, and one of OpenAI's models: no image depends on them.
IGNORED = ("model", "user", "safety_identifier")
# "auto" is as good as left out. The last two are parameters of AsyncClient.events().
REFUSED = {
    "quality": "give num_inference_steps in extra_body",
    "style": "describe it in the prompt",
    "background": "images are opaque",
    "moderation": "the model does not check content",
    "input_fidelity": "give strength in extra_body",
    "timeout": "set it in the client",
    "self": "it is no field",
}
# The model's names of what OpenAI names otherwise.
PARAMS = {"num_images": "n", "quality": "output_compression", "width": "size", "height": "size"}
NO_TOKENS = {"image_tokens": 0, "text_tokens": 0}
NO_USAGE = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": NO_TOKENS}
Events = AsyncGenerator[Event | None, None]
log = logging.getLogger("uvicorn.error")


class Refusal(Exception):
    """param: the parameter to change."""

    def __init__(self, param: str | None, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.param, self.status = param, status


def model_request(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what OpenAI's parameters ask of the model, and stream. Raises Refusal for one that would do nothing."""
    request = {name: value for name, value in fields.items() if value is not None and name not in IGNORED}
    for name, advice in REFUSED.items():
        if request.pop(name, "auto") not in ("auto", "opaque" if name == "background" else "auto"):
            raise Refusal(name, f"{name} cannot be used: {advice}.")
    if not isinstance(request.get("prompt"), str):
        raise Refusal("prompt", "prompt is missing or not text: say what the image shows.")
    if request.pop("response_format", "b64_json") != "b64_json":
        raise Refusal(
            "response_format", "response_format must be b64_json: images are not stored, so they have no URL."
        )
    # OpenAI may send fewer partial images than were asked for. Here there are none.
    if request.pop("partial_images", 0) not in (0, 1, 2, 3):
        raise Refusal("partial_images", "partial_images must be a whole number from 0 to 3.")
    if not isinstance(request.get("stream", True), bool):
        raise Refusal("stream", "stream must be true or false.")
    own = {field: request.pop(name) for field, name in PARAMS.items() if name != "size" and name in request}
    if (size := request.pop("size", "auto")) != "auto":
        sides = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", str(size), re.ASCII)
        if not sides:
            raise Refusal("size", "size must be auto or WIDTHxHEIGHT in pixels, such as 512x512.")
        own |= {"width": int(sides[1]), "height": int(sides[2])}
    for field in own.keys() & request.keys():
        raise Refusal(PARAMS[field], f"{PARAMS[field]} and {field} exclude each other: give one of them.")
    return request | own


async def read_json(request: Request) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(fields := json.loads(await request.body()), dict):
            return fields
    raise Refusal(None, "The body must be a JSON object.")


async def read_form(request: Request) -> dict[str, Any]:
    """Return the fields of a form as JSON would hold them for the model: image in base64, mask as it reads one."""
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {"image": [], "mask": []}
    async with request.form(max_files=20, max_fields=100) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if isinstance(value, str) and name not in files:
                fields[name] = from_text(name, value)
            elif isinstance(value, str) or name not in files:
                raise Refusal(name, f"{name} cannot be used so: the files to send are image and mask.")
            else:
                files[name].append(await value.read())
    images, masks = files.values()
    if not images or len(masks) > 1:
        raise Refusal("mask" if images else "image", "Send one or more files as image, and at most one as mask.")
    encoded = [base64.b64encode(image).decode() for image in images]
    fields["image"] = encoded if len(encoded) > 1 else encoded[0]
    for mask in masks:
        white = await anyio.to_thread.run_sync(white_where_clear, mask, images[0], limiter=request.app.state.limiter)
        fields["mask"] = base64.b64encode(white).decode()
    return fields


def from_text(name: str, text: str) -> Any:
    """Return the number, boolean, list or object that a text in a form stands for, or the text. None: it is empty."""
    with contextlib.suppress(ValueError, RecursionError):
        if "prompt" not in name and not isinstance(found := json.loads(text), str):
            return found
    return text or None


def white_where_clear(mask: bytes, image: bytes) -> bytes:
    """Return a PNG, white where mask is fully transparent: OpenAI edits that, and the model what is white."""
    try:
        start, opened = (Image.open(io.BytesIO(file), formats=("PNG", "WEBP", "JPEG")) for file in (image, mask))
        width, height = start.size[::-1] if start.getexif().get(0x0112, 1) >= 5 else start.size
        if opened.size != (width, height) or width * height > MASK_PIXELS:
            needed = f"{width} x {height} pixels, as image has, and no more than {MASK_PIXELS} in all"
            raise Refusal("mask", f"mask has {opened.width} x {opened.height} pixels: it must have {needed}.")
        clear = opened.convert("RGBA").getchannel("A").point([255] + 255 * [0])
    except Refusal:
        raise
    except Exception:  # for a damaged file Pillow raises whatever its parsers run into
        raise Refusal("mask", "mask or image cannot be read: send whole files, and a PNG as mask.") from None
    if clear.getbbox() is None:
        raise Refusal("mask", "mask has no fully transparent part: make transparent what shall change.")
    buffer = io.BytesIO()
    clear.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


async def followed(client: AsyncClient, request: dict[str, Any], seconds: float) -> Events:
    """Yield each Event, and None after each SILENT_SECONDS without one. Closed before the end, the work ends."""
    arrived: asyncio.Queue[Event | None] = asyncio.Queue()

    async def ask() -> None:
        async with contextlib.aclosing(client.events(timeout=seconds, **request)) as events:
            async for event in events:
                arrived.put_nowait(event)

    task = asyncio.create_task(ask())
    task.add_done_callback(lambda _: arrived.put_nowait(None))
    try:
        while True:
            event = None
            with contextlib.suppress(TimeoutError):
                event = await asyncio.wait_for(arrived.get(), SILENT_SECONDS)
            if event is None and task.done() and arrived.empty():
                break
            yield event
        task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})


def response_of(answer: dict[str, Any], size: str) -> dict[str, Any]:
    """Return OpenAI's ImagesResponse. seed and warnings are the model's own."""
    image_bytes(answer)
    data = [{"b64_json": entry["image"], "seed": entry.get("seed")} for entry in answer["images"]]
    shared = {"background": "opaque", "output_format": str(answer.get("content_type")).removeprefix("image/")}
    return {"created": int(time.time()), **shared, "size": size, "data": data, "warnings": answer.get("warnings", [])}


async def streamed(events: Events, first: Event | None, kind: str, size: str) -> AsyncIterator[str]:
    """Yield an event for each finished image, and until then comments, with each step. first: of the events."""
    event = first
    async with contextlib.aclosing(events):
        try:
            while event is None or event.kind != "result":
                yield f": {event.kind} {json.dumps(event.data)}\n\n" if event else ": waiting\n\n"
                event = await anext(events)
            shared = response_of(event.data, size)
            shared |= {"type": f"{kind}.completed", "created_at": shared["created"], "quality": "auto"}
            for image in shared.pop("data"):
                yield f"event: {shared['type']}\ndata: {json.dumps(shared | image | {'usage': NO_USAGE})}\n\n"
        except ClientError as error:
            yield f"event: error\ndata: {bytes(failure(error).body).decode()}\n\n"


async def unless_gone(request: Request, events: Events) -> Event | None:
    """Return the last event. None: the client left before it, and the work has ended."""

    async def last() -> Event | None:
        async with contextlib.aclosing(events):
            return [event async for event in events][-1]

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(last()), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def failure(error: Exception) -> JSONResponse:
    """Return an error in OpenAI's shape. Its client tries again what may succeed, and nothing else."""
    status, message, param, code, headers = 500, str(error), None, None, {"x-should-retry": "false"}
    if isinstance(error, Refusal):
        status, param = error.status, error.param
    elif isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
    elif isinstance(error, InvalidInput) or (isinstance(error, RequestRefused) and error.status in (400, 413, 422)):
        status = 413 if error.status == 413 else 400
        field = re.search(r"`(\w+)", message)
        param = PARAMS.get(field[1], field[1]) if field else None
    elif isinstance(error, NotFound):
        status, code = 404, "model_not_found"
    elif isinstance(error, TimedOut) and error.retry_after is None:
        status, code, headers = 504, "timeout", {}
    elif isinstance(error, ClientError) and error.retryable:
        status, headers = 503, {"Retry-After": str(math.ceil(error.retry_after or 10))}
    elif not isinstance(error, ClientError):
        message = "The gateway failed: its log says why."
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = "invalid_api_key" if status == 401 else code
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


async def tell(request: Request, error: Exception) -> JSONResponse:
    answer = failure(error)
    # Not its words, which may be those of a prompt.
    log.warning("%s: %d, %s", request.url.path, answer.status_code, type(error).__name__)
    return answer


def limited(request: Request) -> Request:
    """Return the request, which raises Refusal when its body is too long."""
    left = MAX_BODY

    async def receive() -> Message:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise Refusal(None, f"The body has more than {MAX_BODY} bytes: send smaller images.", 413)
        return message

    return Request(request.scope, receive)


def application(client: AsyncClient, key: str | None, seconds: float) -> Starlette:
    """Return the ASGI application. key: of its own, if it has one. seconds: that a request may take at most."""

    def check_key(headers: Headers) -> None:
        kind, _, given = headers.get("Authorization", "").partition(" ")
        if key and not (kind.lower() == "bearer" and hmac.compare_digest(given.encode(), key.encode())):
            raise Refusal(None, "The key is wrong: give the client this gateway's own as api_key.", 401)
        # Any page that a browser on this machine shows can send requests to it.
        if not key and "Origin" in headers:
            raise Refusal(None, f"A web page may not use a gateway without a key: start it with {KEY}.", 403)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(request: Request) -> Response:
        check_key(request.headers)
        model = {"id": client.target.model_id, "object": "model", "created": 0, "owned_by": "fast-truss"}
        return JSONResponse({"object": "list", "data": [model]})

    async def make(request: Request) -> Response:
        check_key(request.headers)
        request, kind = limited(request), KINDS[request.url.path]
        wanted = model_request(await (read_form if kind == "image_edit" else read_json)(request))
        stream, sides = (
            wanted.pop("stream", False),
            [str(wanted[each]) for each in ("width", "height") if each in wanted],
        )
        size = "x".join(sides) if len(sides) == 2 else "auto"
        events = followed(client, wanted, seconds if stream else seconds_of(request.headers, seconds))
        if not stream:
            last = await unless_gone(request, events)
            return JSONResponse(response_of(last.data, size)) if last else Response(status_code=499)
        # With what is refused at once, as its own status.
        first = await anext(events)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(streamed(events, first, kind, size), headers=headers, media_type="text/event-stream")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # One mask at a time, as each takes hundreds of MB.
        app.state.limiter = anyio.CapacityLimiter(1)
        async with client:
            yield

    routes = [Route("/health", health), Route("/v1/models", models)]
    routes += [Route(path, make, methods=["POST"]) for path in KINDS]
    handlers: Any = dict.fromkeys((HTTPException, Refusal, ClientError, Exception), tell)
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


def seconds_of(headers: Headers, most: float) -> float:
    """Return how long an answer may take, so that it comes before openai's client gives up."""
    for name in ("x-stainless-read-timeout", "x-stainless-timeout"):
        with contextlib.suppress(ValueError):
            if 0 < (said := float(headers.get(name, ""))) < math.inf:
                return min(most, said - min(5, said / 10))
    return most


def key_of(file: Path | None, is_open: bool) -> str | None:
    """Return the key of the gateway. is_open: others can reach it, so it needs one. Raises InvalidInput."""
    key = os.environ.get(KEY)
    if file:
        try:
            key = file.read_text("utf-8").strip()
        except (OSError, ValueError):
            raise InvalidInput(f"--key-file {file} cannot be read: name a text file that holds the key.") from None
    elif not key and is_open and sys.stdin.isatty():
        key = typer.prompt("Key of this gateway", hide_input=True)
    if (key or file) and not re.fullmatch(r"[!-~]{8,}", key or ""):
        raise InvalidInput(f"The gateway's key must be 8 or more letters, digits and signs: set {KEY} or --key-file.")
    if not key and is_open:
        raise InvalidInput(f"--listen lets others in, so the gateway needs a key: set {KEY} or --key-file.")
    return key


def serve(client: AsyncClient, listen: str, port: int, key_file: Path | None, seconds: float) -> None:
    """Serve until it is stopped. Raises InvalidInput."""
    try:
        family, _, _, _, address = socket.getaddrinfo(listen, port, type=socket.SOCK_STREAM)[0]
        key = key_of(key_file, not ipaddress.ip_address(address[0]).is_loopback)
        bound = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise InvalidInput(f"--listen {listen} --port {port} cannot be used ({error.strerror}).") from None
    host = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
    print(f"OpenAI's Images API: http://{host}:{bound.getsockname()[1]}/v1", flush=True)
    config = uvicorn.Config(application(client, key or None, seconds), access_log=False, timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[bound])

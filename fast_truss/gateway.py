"""OpenAI's Images API in front of a deployment: see docs/gateway.md. Unknown fields pass through to the model."""

import asyncio
import base64
import contextlib
import hmac
import io
import json
import logging
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fast_truss import AsyncClient, ClientError, Event, InvalidInput, RequestRefused, errors, image_bytes

MAX_BODY, MASK_PIXELS = 64_000_000, 25_000_000
# How soon a disconnected client is noticed, and the longest silence of a stream.
TICK_SECONDS = 1.0
# They change no image. The API allows fewer partial images than requested: the gateway sends none.
IGNORED = ("model", "user", "safety_identifier", "partial_images")
# Accepted only as "auto", which means the default.
REFUSED = ("quality", "style", "background", "moderation", "input_fidelity")
OWN_FIELDS = "leave it out, and set the model's own fields, such as num_inference_steps or strength, in extra_body"
# The model's field -> OpenAI's parameter.
PARAMS = {"num_images": "n", "quality": "output_compression", "width": "size", "height": "size"}
COUNTS = ("input_tokens", "output_tokens", "total_tokens")
NO_USAGE = {**dict.fromkeys(COUNTS, 0), "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}
Events = AsyncGenerator[Event | None, None]
log = logging.getLogger("uvicorn.error")


def model_request(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the model's fields for OpenAI's parameters, and stream. Raises InvalidInput for one without effect."""
    request = {name: value for name, value in fields.items() if value is not None and name not in IGNORED}
    for name in REFUSED:
        if request.pop(name, "auto") not in ("auto", "opaque" if name == "background" else "auto"):
            raise InvalidInput(f"`{name}` is not supported: {OWN_FIELDS}.")
    if not isinstance(request.get("prompt"), str):
        raise InvalidInput("`prompt` is missing or not a string: describe the image.")
    if request.pop("response_format", "b64_json") != "b64_json":
        raise InvalidInput("`response_format` must be b64_json: images are not stored, so they have no URL.")
    if not isinstance(request.setdefault("stream", False), bool):
        raise InvalidInput("`stream` must be true or false.")
    own = {field: request.pop(name) for field, name in PARAMS.items() if name != "size" and name in request}
    if (size := request.pop("size", "auto")) != "auto":
        if not re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}", str(size)):
            raise InvalidInput("`size` must be auto or WIDTHxHEIGHT in pixels, such as 512x512.")
        own["width"], own["height"] = map(int, size.split("x"))
    for field in own.keys() & request.keys():
        raise InvalidInput(f"`{PARAMS[field]}` and {field} exclude each other: use one of them.")
    return request | own


async def read_form(request: Request) -> dict[str, Any]:
    """Return the fields of a form as the model's JSON: image and mask in base64, the mask white where it is edited."""
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {"image": [], "mask": []}
    async with request.form(max_files=20, max_fields=100) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if isinstance(value, str) == (name in files):
                raise InvalidInput(f"`{name}` is wrong: image and mask must be files, and other fields must not.")
            if not isinstance(value, str):
                files[name].append(await value.read())
            elif value:
                fields[name] = value
                with contextlib.suppress(ValueError, RecursionError):  # form values are untyped text
                    fields[name] = value if "prompt" in name else json.loads(value)
    images, masks = files.values()
    if not images or len(masks) > 1:
        raise InvalidInput("`mask` must be one file." if images else "`image` must be one or more files.")
    encoded = [base64.b64encode(image).decode() for image in images]
    fields["image"] = encoded if len(encoded) > 1 else encoded[0]
    for mask in masks:
        fields["mask"] = base64.b64encode(await asyncio.to_thread(white_where_clear, mask, images[0])).decode()
    return fields


def white_where_clear(mask: bytes, image: bytes) -> bytes:
    """Return a PNG that is white where mask is fully transparent: OpenAI edits transparent parts, the model white."""
    clear: Any = None
    with contextlib.suppress(Exception):  # Pillow's parsers raise many types for a damaged file
        start, opened = (Image.open(io.BytesIO(file), formats=("PNG", "WEBP", "JPEG")) for file in (image, mask))
        # Check the size first: reading EXIF decodes a PNG.
        if sorted(opened.size) == sorted(start.size) and math.prod(opened.size) <= MASK_PIXELS:
            is_turned = start.getexif().get(0x0112, 1) >= 5
            if opened.size == (start.size[::-1] if is_turned else start.size):
                clear = opened.convert("RGBA").getchannel("A").point([255] + 255 * [0])
    if not (clear and clear.getbbox()):
        wanted = f"a valid PNG of the same size as image, with at most {MASK_PIXELS} pixels"
        raise InvalidInput(f"`mask` must be {wanted}, and fully transparent where image is to change.")
    clear.save(buffer := io.BytesIO(), "PNG", compress_level=1)
    return buffer.getvalue()


async def followed(events: AsyncGenerator[Event, None]) -> Events:
    """Yield the newest Event every TICK_SECONDS, None before the first, and the last one at once. Closes events."""
    seen: list[Event | None] = [None]

    async def follow() -> None:
        async with contextlib.aclosing(events):
            async for seen[0] in events:
                pass

    task = asyncio.create_task(follow())
    try:
        while not (await asyncio.wait({task}, timeout=TICK_SECONDS))[0]:
            yield seen[0]
        task.result()
        yield seen[0]
    finally:
        task.cancel()
        await asyncio.wait({task})


def response_of(answer: dict[str, Any], size: str) -> dict[str, Any]:
    """Return OpenAI's ImagesResponse, with the model's seed and warnings added."""
    image_bytes(answer)
    data = [{"b64_json": entry["image"], "seed": entry.get("seed")} for entry in answer["images"]]
    shared = {"background": "opaque", "output_format": str(answer.get("content_type")).removeprefix("image/")}
    return {"created": int(time.time()), **shared, "size": size, "data": data, "warnings": answer.get("warnings", [])}


async def streamed(request: Request, events: Events, event: Event | None, size: str) -> AsyncIterator[str]:
    """Yield a comment for each step, then an event for each image. event: the first one."""
    kind = "image_edit.completed" if request.url.path.endswith("edits") else "image_generation.completed"
    async with contextlib.aclosing(events):
        try:
            while event is None or event.kind != "result":
                yield f": {event.kind} {json.dumps(event.data)}\n\n" if event else ": waiting\n\n"
                event = await anext(events)
            shared = {"type": kind, "quality": "auto", "usage": NO_USAGE, **response_of(event.data, size)}
            for image in shared.pop("data"):
                yield f"event: {kind}\ndata: {json.dumps({**shared, **image, 'created_at': shared['created']})}\n\n"
        except ClientError as error:
            yield f"event: error\ndata: {bytes((await failure(request, error)).body).decode()}\n\n"


async def failure(request: Request, error: Exception) -> JSONResponse:
    """Return an error in OpenAI's format, so that its client retries only what may succeed."""
    is_gone = isinstance(error, errors.NotFound | errors.DeploymentFailed)
    status, param = getattr(error, "status_code", 404 if is_gone else 500), None
    headers = {"x-should-retry": "false"}
    message = str(error) if isinstance(error, ClientError) else getattr(error, "detail", "The gateway failed.")
    if isinstance(error, InvalidInput) or (isinstance(error, RequestRefused) and error.status in (400, 413, 422)):
        status, named = 413 if error.status == 413 else 400, re.search(r"`(\w+)", message)
        if named:
            param = PARAMS.get(named[1], named[1]) if isinstance(error, RequestRefused) else named[1]
    elif isinstance(error, errors.TimedOut | errors.ConnectionLost) and error.retry_after is None:
        status, headers = 504, {}
    elif isinstance(error, ClientError) and error.retryable:
        status, headers = 503, {"Retry-After": str(math.ceil(error.retry_after or 10))}
    # Not the message: it may quote the prompt.
    log.warning("%s: %d, %s", request.url.path, status, type(error).__name__)
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = {401: "invalid_api_key", 404: "not_found", 503: "unavailable", 504: "timeout"}.get(status)
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


def application(client: AsyncClient, key: str, seconds: float) -> Starlette:
    """Return the ASGI application. key: the gateway's own, or empty. seconds: the longest time for a request."""

    async def answer(request: Request) -> Response:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        if key and not (kind.lower() == "bearer" and hmac.compare_digest(given.encode(), key.encode())):
            raise HTTPException(401, "The key is wrong: set api_key to this gateway's own key.")
        # Any web page open on this machine could send requests here.
        if not key and "Origin" in request.headers:
            raise HTTPException(403, "A web page may not use a gateway without a key: start it with one.")
        if request.method != "POST":
            model = {"id": client.target.model_id, "object": "model", "created": 0, "owned_by": "fast-truss"}
            return JSONResponse({"object": "list", "data": [model]})
        # With both headers, Content-Length is not the length of the body.
        length = "" if "Transfer-Encoding" in request.headers else request.headers.get("Content-Length", "")
        if not length or int(length) > MAX_BODY:
            raise HTTPException(413, f"Content-Length must be set, and at most {MAX_BODY}: send smaller images.")
        # Answer before openai's client times out, as its header says. A stream renews that with each part.
        limit = re.match(r"[0-9]{1,6}", request.headers.get("x-stainless-read-timeout", ""))
        try:
            fields = await (read_form(request) if request.url.path.endswith("edits") else request.json())
            wanted = model_request(dict(**fields))
            stream = wanted.pop("stream")
            most = min(seconds, 0.98 * float(limit[0])) if limit and not stream else seconds
            events = followed(client.events(timeout=most, **wanted))
        except (TypeError, ValueError, RecursionError):
            raise InvalidInput("The body must be a JSON object with parameters of this API or of the model.") from None
        size = f"{wanted.get('width')}x{wanted.get('height')}" if {"width", "height"} <= wanted.keys() else "auto"
        if stream:  # await the first event, so that an early error keeps its status
            parts = streamed(request, events, await anext(events), size)
            return StreamingResponse(parts, headers={"X-Accel-Buffering": "no"}, media_type="text/event-stream")
        async with contextlib.aclosing(events):
            async for event in events:
                if event and event.kind == "result":
                    return JSONResponse(response_of(event.data, size))
                if await request.is_disconnected():
                    break
        return Response(status_code=499)

    @contextlib.asynccontextmanager
    async def connected(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    routes = [Route("/health", JSONResponse({"status": "ok"})), Route("/v1/models", answer)]
    routes += [Route(f"/v1/images/{name}", answer, methods=["POST"]) for name in ("generations", "edits")]
    handlers: Any = dict.fromkeys((HTTPException, ClientError, Exception), failure)
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=connected)


def serve(client: AsyncClient, listen: str, port: int, key: str, seconds: float) -> None:
    """Serve until stopped. key: the gateway's own, or empty. Raises InvalidInput."""
    if key and not re.fullmatch(r"[!-~]{8,}", key):
        raise InvalidInput("The gateway's key must have 8 or more letters, digits or symbols, and no spaces.")
    if not key and listen not in ("127.0.0.1", "::1", "localhost"):
        raise InvalidInput(f"--listen {listen} is public: set FAST_TRUSS_GATEWAY_KEY or --key-file.")
    app = application(client, key, seconds)
    # An access log would contain query strings.
    uvicorn.run(app, host=listen, port=port, access_log=False, timeout_graceful_shutdown=5)

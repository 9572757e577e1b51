"""Server-sent events that report the progress of a request."""

import base64
import dataclasses
import json
from collections.abc import AsyncGenerator
from typing import Any

from fast_truss.errors import MODEL, SOURCE_HEADER, ConnectionLost, UnexpectedAnswer, of_answer

SILENT_SECONDS = 60.0  # the model sends at least a comment every 15 s


@dataclasses.dataclass(frozen=True)
class Event:
    """kind: queued, step or result, which is the last.

    data: for step, image and step (from 1), of (steps per image) and seconds (since the request left the queue); for
    result, the answer that generate() returns.
    """

    kind: str
    data: dict[str, Any]


async def read(response: Any) -> AsyncGenerator[Event, None]:
    """Yield the events of an open httpx.Response, up to the result. Raises ClientError for an `error` event."""
    from httpx_sse import EventSource, SSEError

    # Before the first byte a cold start may be silent for long; after it, silence means a lost connection.
    response.request.extensions["timeout"]["read"] = SILENT_SECONDS
    response.encoding = "utf-8"
    images: list[str] = []
    try:
        async for sse in EventSource(response).aiter_sse():
            if sse.event == "image":  # in short lines, and the result without them
                images.append(sse.data.replace("\n", ""))
            elif sse.data or sse.event != "message":  # not only an id or a retry
                yield (event := _event(sse.event, sse.data, images))
                if event.kind == "result":
                    return
    except SSEError:
        raise UnexpectedAnswer("The answer is not an event stream: check that this is a fast-truss model.") from None
    raise ConnectionLost("The answer ended before the images arrived: try again.")


def _event(kind: str, text: str, images: list[str]) -> Event:
    try:
        data = dict(json.loads(text))
        needed = {"step": ("image", "step", "of"), "error": ("status",)}.get(kind, ())
        data |= {name: int(data[name]) for name in needed}
        if kind == "result" and images:
            data["images"] = [{**each, "image": image} for each, image in zip(data["images"], images, strict=True)]
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        raise UnexpectedAnswer("The answer has a malformed event: check that this is a fast-truss model.") from None
    if kind == "error":
        raise of_answer(data["status"], {SOURCE_HEADER: MODEL}, text.encode())
    return Event(kind, data)


def image_bytes(answer: dict[str, Any]) -> list[bytes]:
    """Return the image files in an answer of generate(). Raises UnexpectedAnswer."""
    try:
        files = [base64.b64decode(entry["image"], validate=True) for entry in answer["images"]]
    except (KeyError, TypeError, ValueError):
        files = []
    if not files:
        raise UnexpectedAnswer("The answer has no image: check that this is a fast-truss model.")
    return files

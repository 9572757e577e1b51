"""Server-sent events: the progress of a request."""

import base64
import dataclasses
import json
from collections.abc import AsyncGenerator
from typing import Any

from fast_truss.errors import MODEL, SOURCE_HEADER, ConnectionLost, UnexpectedAnswer, of_answer

# The model sends something every 15 s.
SILENT_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Event:
    """kind: queued, step or result, which is the last.

    data: of step, image and step (both count from 1), of (the steps of an image) and seconds (since its turn came); of
    result, the same answer as generate() returns.
    """

    kind: str
    data: dict[str, Any]


async def read(response: Any) -> AsyncGenerator[Event, None]:
    """Yield the events of an open httpx.Response, up to the result. Raises the ClientError that an `error` means."""
    from httpx_sse import EventSource, SSEError

    # Silence is allowed until the first byte, in a cold start, and no more after it.
    response.request.extensions["timeout"]["read"] = SILENT_SECONDS
    response.encoding = "utf-8"
    try:
        async for sse in EventSource(response).aiter_sse():
            if not sse.data and sse.event == "message":  # an id or a retry alone
                continue
            event = _event(sse.event, sse.data)
            yield event
            if event.kind == "result":
                return
    except SSEError:
        raise UnexpectedAnswer("The answer is not a stream of events: is this a model of fast-truss?") from None
    raise ConnectionLost("The answer ended before the images were there: try again.")


def _event(kind: str, text: str) -> Event:
    try:
        data = dict(json.loads(text))
        needed = {"step": ("image", "step", "of"), "error": ("status",)}.get(kind, ())
        data |= {name: int(data[name]) for name in needed}
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        raise UnexpectedAnswer("The answer holds an event that is not whole: is this a model of fast-truss?") from None
    if kind == "error":
        raise of_answer(data["status"], {SOURCE_HEADER: MODEL}, text.encode())
    return Event(kind, data)


def image_bytes(answer: dict[str, Any]) -> list[bytes]:
    """Return the files in an answer of generate(). Raises UnexpectedAnswer."""
    try:
        files = [base64.b64decode(entry["image"], validate=True) for entry in answer["images"]]
    except (KeyError, TypeError, ValueError):
        files = []
    if not files:
        raise UnexpectedAnswer("The answer holds no image: is this a model of fast-truss?")
    return files

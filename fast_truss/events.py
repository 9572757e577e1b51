"""Server-sent events: what the model says of a request while it works on it."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from fast_truss.errors import MODEL, SOURCE_HEADER, UnexpectedAnswer, of_answer

# The model says something every 15 s.
SILENT_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Event:
    """kind: queued, step or result, which is the last.

    data: of step, image and step (both count from 1), of (the steps of an image) and seconds (since its turn came); of
    result, the same answer as generate() returns.
    """

    kind: str
    data: dict[str, Any]


class Reader:
    """Puts events together from the parts in which they come."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, part: bytes) -> Iterator[Event]:
        """Yield what is whole now. Raises the ClientError that an event `error` means."""
        start = max(len(self._rest) - 1, 0)
        self._rest += part
        # Of bytes, and at these alone: a prompt in a warning may hold characters that Unicode calls ends of a line.
        while (end := self._rest.find(b"\n\n", start)) >= 0:
            block, start = bytes(self._rest[:end]), 0
            del self._rest[: end + 2]
            yield from _event(block)


def _event(block: bytes) -> Iterator[Event]:
    fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
    if b"data" not in fields:  # a comment, so that the connection is not silent
        return
    kind = fields.get(b"event", b"").decode("utf-8", "replace")
    try:
        data = dict(json.loads(fields[b"data"]))
        status = int(data["status"]) if kind == "error" else 200
    except (ValueError, LookupError, TypeError):
        raise UnexpectedAnswer("The answer holds an event that is not whole: is this this project's model?") from None
    if kind == "error":
        raise of_answer(status, {SOURCE_HEADER: MODEL}, fields[b"data"])
    yield Event(kind, data)


class Body:
    """The body of an open answer, part by part. response: httpx.Response, of either kind of client."""

    def __init__(self, response: Any) -> None:
        import httpx

        self._is_async = isinstance(response.stream, httpx.AsyncByteStream)
        # Silence is allowed until the first byte, in a cold start, and no more after it.
        limits = response.request.extensions["timeout"]
        limits["read"] = min(limits["read"], SILENT_SECONDS)
        self._parts = response.aiter_bytes() if self._is_async else response.iter_bytes()

    def part(self) -> Any:
        """Return the next part, b"" at the end. Of an asynchronous client: an awaitable of it."""
        return anext(self._parts, b"") if self._is_async else next(self._parts, b"")

"""Exceptions: each has one sentence for a person, and what a program needs to react."""

import json
import re
import textwrap
from typing import Any

# Truss's server sets this header on its own errors: the model's, and "not ready".
SOURCE_HEADER, MODEL = "X-BASETEN-ERROR-SOURCE", "04"


class ClientError(Exception):
    """status: HTTP status, if there was an answer. retry_after: seconds to wait, if the answer names them."""

    retryable = False  # True if the same call may succeed later

    def __init__(self, sentence: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(printable(sentence))
        self.status = status
        self.retry_after = retry_after


def printable(text: str) -> str:
    """Return text without control characters, which a server could use to change the terminal."""
    return "".join(each for each in text if each.isprintable() or each == "\n")


class InvalidInput(ClientError):
    """The caller's input is invalid. Nothing was sent."""


class RequestRefused(ClientError):
    """The model or Baseten refused this request with 400, 413, 422 or similar. The user can change it."""


class KeyRefused(ClientError):
    """Baseten refused the key: 401 or 403."""


class NotFound(ClientError):
    """There is no such model, environment or deployment."""


class ModelFailed(ClientError):
    """The model failed: the same request would fail again."""


class DeploymentFailed(ClientError):
    """The deployment cannot become ready without a person."""


class UnexpectedAnswer(ClientError):
    """The answer is not one of Baseten or of a fast-truss model."""


class Unavailable(ClientError):
    """Baseten cannot answer now: 408, 429 or 5xx."""

    retryable = True


class NotReady(Unavailable):
    """The server answers, but the model is still loading."""


class Unreachable(ClientError):
    """No connection: nothing was sent."""

    retryable = True


class ConnectionLost(ClientError):
    """The connection broke or timed out: the request may have been carried out."""

    retryable = True


class TimedOut(ClientError):
    """The caller's timeout has passed."""

    retryable = True


def of_answer(status: int, headers: Any, content: bytes) -> ClientError:
    """Return the error for an answer with status 300 or above. headers: httpx.Headers or a similar mapping."""
    body = _object(content)
    reason = _reason(body)
    shown = f"{status}: {reason}" if reason else f"{status}"
    known: dict[str, Any] = {"status": status, "retry_after": retry_after(headers.get("Retry-After"), body)}
    own = headers.get(SOURCE_HEADER) == MODEL or body.get("error_code") == "application_error"
    if body.get("error_code") == "model_not_ready" or (own and status == 503 and "is not ready" in reason):
        return NotReady(f"The model is not ready yet ({shown}).", **known)
    if status in (401, 403):
        return KeyRefused(f"Baseten refused the key ({shown}): check BASETEN_API_KEY and its workspace.", **known)
    if status == 404:
        return NotFound("The model or deployment does not exist or is deactivated (404): check its ID.", **known)
    if own and status >= 500:
        return ModelFailed(f"The model failed ({shown}). The same request would fail again: see its log.", **known)
    if not own and (status in (408, 429) or status >= 500):
        return Unavailable(f"Baseten cannot answer now ({shown}).", **known)
    return RequestRefused(f"The request was refused ({shown}).", **known)


def retry_after(header: str | None, body: dict[str, Any]) -> float | None:
    """Return the seconds to wait from the Retry-After header or retry_after in the body. Ignores a date."""
    for holder in (body, body.get("error")):
        said = holder.get("retry_after") if isinstance(holder, dict) else None
        if isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said < 1e6:
            return float(said)
    return float(header) if header and re.fullmatch(r"[0-9]{1,6}", header, re.ASCII) else None


def _object(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    return body if isinstance(body, dict) else {}


def _reason(body: dict[str, Any]) -> str:
    found = body.get("error") or body.get("detail") or body.get("message") or ""
    if isinstance(found, dict):
        found = found.get("message") or found
    # Cut between words: half a key could no longer be found and masked.
    text = textwrap.shorten(str(found), 500, break_on_hyphens=False, placeholder=" ...")
    # Truss's prefix tells the user nothing.
    text = re.sub(r"^Input Parsing Errors?:", "", text)
    return text.replace(": Value error, ", ": ").lstrip().rstrip(" .")

"""What can go wrong, as types: each holds one sentence for a person, and what a program needs to decide."""

import json
import re
import textwrap
from typing import Any

# Truss's server marks what it answers itself with this: the model's own errors, and "not ready".
SOURCE_HEADER, MODEL = "X-BASETEN-ERROR-SOURCE", "04"


class ClientError(Exception):
    """status: of the HTTP answer, if there was one. retry_after: the seconds that it asks to wait, if it does."""

    retryable = False  # True: the same call may succeed later

    def __init__(self, sentence: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(printable(sentence))
        self.status = status
        self.retry_after = retry_after


def printable(text: str) -> str:
    """Return text without control characters: those of an answer must not reach a terminal."""
    return "".join(each for each in text if each.isprintable() or each == "\n")


class InvalidInput(ClientError):
    """What the caller gave is wrong. Nothing was sent."""


class RequestRefused(ClientError):
    """The model or Baseten refuses this request: 400, 413, 422 and the like. A visitor can change it."""


class KeyRefused(ClientError):
    """Baseten refuses the key: 401 or 403."""


class NotFound(ClientError):
    """There is no such model, environment or deployment."""


class ModelFailed(ClientError):
    """The model's own error: the same request would fail again."""


class DeploymentFailed(ClientError):
    """The deployment is in a state in which it never becomes ready."""


class UnexpectedAnswer(ClientError):
    """The answer is not what Baseten or a model of fast-truss gives."""


class Unavailable(ClientError):
    """Baseten cannot answer now: 408, 429 or 5xx."""

    retryable = True


class NotReady(Unavailable):
    """A server answers, and its model is still loading."""


class Unreachable(ClientError):
    """No connection: nothing was sent."""

    retryable = True


class ConnectionLost(ClientError):
    """The connection broke or was silent: what was sent may have been carried out."""

    retryable = True


class TimedOut(ClientError):
    """The time that the caller gave is over."""

    retryable = True


def of_answer(status: int, headers: Any, content: bytes) -> ClientError:
    """Return the error that an answer of 300 or above means. headers: httpx.Headers, or any mapping like them."""
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
        return NotFound("There is no such model or deployment, or it is deactivated (404): check its id.", **known)
    if own and status >= 500:
        return ModelFailed(f"The model failed ({shown}). The same request would fail again.", **known)
    if not own and (status in (408, 429) or status >= 500):
        return Unavailable(f"Baseten cannot answer now ({shown}).", **known)
    return RequestRefused(f"The request was refused ({shown}).", **known)


def retry_after(header: str | None, body: dict[str, Any]) -> float | None:
    """Return the seconds to wait that an answer names, in Retry-After or as retry_after in its body. A date is none."""
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
    # At a blank: what is cut within a word may be a part of the key, which nobody could then take out.
    text = textwrap.shorten(str(found), 500, break_on_hyphens=False, placeholder=" ...")
    # Truss's own prefix says nothing to a person.
    text = re.sub(r"^Input Parsing Errors?:", "", text)
    return text.replace(": Value error, ", ": ").lstrip().rstrip(" .")

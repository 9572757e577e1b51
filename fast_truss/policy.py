"""How long to retry, what may be retried, and after which pause."""

import dataclasses
import enum
import time

from fast_truss.errors import ClientError, ConnectionLost, NotReady, TimedOut, Unavailable, Unreachable

# Baseten lets a synchronous request live for 1200 s.
PREDICT_SECONDS = 1200.0
OTHER_SECONDS = 30.0
# An optional status check beside a request.
GLANCE_SECONDS = 10.0
ASK_SECONDS = 60.0
WAIT_SECONDS = 1800.0
# The shortest pause, whatever Retry-After says.
LEAST_PAUSE = 1.0
MOST_PAUSE = 10.0
# Baseten's docs ask for 30 to 60 s after a 500, the answer to a request that was parked too long.
PARKED_PAUSE = 30.0
BUSY_PAUSE = 5.0
# Tries for an address that has never answered: it is probably wrong.
STRANGER_TRIES = 3


class Kind(enum.Enum):
    """What a request does, which decides whether it may be sent twice."""

    READ = "read only"
    WAKE = "starts a replica if there is none"
    PREDICT = "generates an image, which costs money"
    CHANGE = "idempotent update"
    ONCE = "not idempotent, such as ending a replica"


@dataclasses.dataclass(frozen=True)
class Wait:
    """A pause. reason: the error before it."""

    seconds: float
    reason: ClientError


def shown(seconds: float) -> str:
    """Format seconds for a sentence."""
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:g} s"


class Deadline:
    """The end of the caller's timeout. answered: whether the server has answered at all."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.answered = False
        self._started = time.monotonic()

    def left(self) -> float:
        return self._started + self.seconds - time.monotonic()


def may_try_again(kind: Kind, error: ClientError) -> bool:
    """Return whether a retry may succeed, and does no harm if the first request was carried out after all."""
    if kind is Kind.ONCE:
        return isinstance(error, Unreachable) or error.status == 429
    if kind is Kind.PREDICT and isinstance(error, ConnectionLost):
        return False
    return error.retryable


def pause(kind: Kind, error: ClientError, tries: int) -> float:
    """Return the seconds until the next try: Retry-After, or what suits the kind of request."""
    if error.retry_after is not None:
        return max(error.retry_after, LEAST_PAUSE)
    if kind is Kind.PREDICT and isinstance(error, Unavailable) and not isinstance(error, NotReady):
        return BUSY_PAUSE if error.status == 429 else PARKED_PAUSE
    return min(LEAST_PAUSE * 2.0 ** min(tries - 1, 10), MOST_PAUSE)


def next_pause(kind: Kind, error: ClientError, tries: int, deadline: Deadline) -> float:
    """Return the seconds until the next try. Raises error if it is permanent, TimedOut if the time is over."""
    stranger = isinstance(error, Unreachable | ConnectionLost) and not deadline.answered and tries >= STRANGER_TRIES
    if stranger or not may_try_again(kind, error):
        raise error
    seconds, left = pause(kind, error, tries), max(deadline.left(), 0.0)
    if seconds < left:
        return seconds
    sentence = f"There was no answer within {shown(deadline.seconds)}"
    if error.retry_after is not None:
        sentence = f"The server asks to wait {shown(seconds)}, but {left:.0f} s of {shown(deadline.seconds)} are left"
    raise TimedOut(f"{sentence}. Last error: {error}", error.status, error.retry_after)

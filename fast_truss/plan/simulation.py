"""What users wait and what replicas cost under autoscaling settings, by the rules of Baseten's documents.

Seconds from the start of the traffic. deployment/autoscaling/overview: requests in flight, averaged over
autoscaling_window, over concurrency_target x target_utilization_percentage, rounded up, are the replicas wanted. More
start at once. Load must stay lower for a scale_down_delay before max_scale_down_rate percent of what is too much ends,
and so on. deployment/autoscaling/cold-starts: after scale_down_delay without traffic all replicas end, and the next
request, which waits in a queue, starts one. organization/billing: by the minute, from when a replica is up on a node.
"""

import bisect
import dataclasses
import functools
import heapq
import math
import operator
from collections import deque
from collections.abc import Sequence

MINUTE = 60.0
# What the documents leave open.
ASSUMPTIONS = (
    "Requests wait in one queue, first come first served, and a replica makes one image at a time "
    "(predict_concurrency 1). Nobody leaves, nothing fails. All images take the same time, and so do all cold starts.",
    "The last replica ends when scale_down_delay has passed since the last image, wake, start or end of a schedule; "
    "decisions about more than one replica fall once per autoscaling_window.",
    "A replica that is no longer wanted finishes its image first. It is paid for in whole minutes.",
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Seconds from the wake until a replica answers, those of them before its container runs, and of one image."""

    cold_start: float
    image: float
    unbilled: float = 0.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """Baseten's autoscaling settings, and wakes: the app wakes the model when it is opened.

    windows: (start, end) of a schedule, in order and apart, in which window_replicas are the least.
    """

    min_replica: int
    max_replica: int
    scale_down_delay: float = 900.0
    autoscaling_window: float = 60.0
    concurrency_target: int = 1
    target_utilization_percentage: int = 70
    max_scale_down_rate: int = 50
    wakes: bool = False
    windows: tuple[tuple[float, float], ...] = ()
    window_replicas: int = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """When each request came and when its image was begun, in order; replicas that were started; seconds billed."""

    arrivals: Sequence[float]
    starts: Sequence[float]
    cold_starts: int
    billed: float

    @functools.cached_property
    def delays(self) -> list[float]:
        """Seconds from each request until its image was begun, the shortest first."""
        return sorted(map(operator.sub, self.starts, self.arrivals))

    def late(self, seconds: float) -> float:
        """Return the share of the requests with a longer delay."""
        return (len(self.delays) - bisect.bisect_right(self.delays, seconds + 1e-9)) / max(len(self.delays), 1)

    def mean(self) -> float:
        return sum(self.delays) / max(len(self.delays), 1)

    def percentile(self, percent: int) -> float:
        """Return the smallest delay that is not below percent of them (the nearest rank); 0 without requests."""
        return self.delays[max(-(-len(self.delays) * percent // 100) - 1, 0)] if self.delays else 0.0


def simulate(
    arrivals: Sequence[float], span: float, settings: Settings, machine: Machine, opened: Sequence[float] = ()
) -> Outcome:
    """Serve the requests under the settings.

    arrivals: when each request is sent, in order, within 0 to span. opened: when the app was opened, in order; it is
    read only where settings.wakes. What is not served at span is served to its end, and billed until span alone.
    """
    run = _Run(arrivals, span, settings, machine, opened if settings.wakes else ())
    changes = []
    for start, end in settings.windows:
        changes += [(max(start, 0.0), max(run.least, settings.window_replicas)), (end, run.least)]
    changes.append((math.inf, 0))
    now = 0.0
    while now < span:
        now = min(run.decision, changes[0][0], span)
        run.serve(now)
        run.fall_asleep(now)
        if now < span and now == changes[0][0]:
            run.change_least(*changes.pop(0))
        elif now < span:
            run.decide(now)
    run.serve(math.inf)
    run.end(span, len(run.free))
    return Outcome(arrivals, run.starts, run.cold_starts, run.billed)


class _Run:
    def __init__(
        self, arrivals: Sequence[float], span: float, settings: Settings, machine: Machine, opened: Sequence[float]
    ) -> None:
        self.arrivals, self.span, self.settings, self.machine, self.opened = arrivals, span, settings, machine, opened
        self.least = settings.min_replica
        self.free = [0.0] * self.least  # a heap: when each replica is free; of one that starts, when it is ready
        self.born = deque(self.free)  # when each of them began to be paid for, oldest first
        self.starts: list[float] = []  # when the image of each request was begun: they are served in order
        self.asleep = math.inf if self.least else -math.inf  # not before this do the last replicas end
        # Without room between the least and the most there is nothing to decide.
        most = max(settings.max_replica, settings.window_replicas if settings.windows else 0)
        self.decision = settings.autoscaling_window if most > max(self.least, 1) else math.inf
        self.below_since: float | None = None
        self.came = self.finished = self.cold_starts = 0  # the first two: before the last decision
        self.billed = 0.0

    def serve(self, until: float) -> None:
        """Begin the images of those who come, as far as a replica is free until then."""
        last = bisect.bisect_right(self.arrivals, until, len(self.starts))
        for place in range(len(self.starts), last):
            at = self.arrivals[place]
            if at > self.asleep:
                self.fall_asleep(at)
                if not self.free:
                    self.begin(at, 1)
            start = max(at, self.free[0])
            if start > until:
                break
            self.starts.append(start)
            heapq.heapreplace(self.free, start + self.machine.image)

    def fall_asleep(self, now: float) -> None:
        """End what had no traffic for the whole delay, and let the app wake it, until now."""
        while now > self.asleep:
            place = bisect.bisect_right(self.opened, self.asleep)
            if self.free:
                ended = [start + self.machine.image for start in self.starts[-1:]]
                active = max([*self.free, *ended, *self.opened[max(place - 1, 0) : place]])
                if active + self.settings.scale_down_delay > self.asleep:
                    self.asleep = active + self.settings.scale_down_delay
                    continue
                self.end(self.asleep, len(self.free))  # all are idle
                self.below_since = None
            if place == len(self.opened) or self.opened[place] > now:
                return
            self.begin(self.opened[place], 1)

    def begin(self, at: float, count: int) -> None:
        for _ in range(count):
            heapq.heappush(self.free, at + self.machine.cold_start)
            self.born.append(at + self.machine.unbilled)
        self.cold_starts += count

    def end(self, at: float, count: int) -> None:
        """End those that are free first. One that is busy finishes its image."""
        for _ in range(count):
            until = max(at, min(heapq.heappop(self.free), self.span))
            self.billed += MINUTE * math.ceil(max(0.0, until - self.born.popleft()) / MINUTE - 1e-9)

    def change_least(self, now: float, least: int) -> None:
        """A window of the schedule begins or ends."""
        self.least = least
        self.asleep = math.inf if least else now + self.settings.scale_down_delay
        self.begin(now, max(0, least - len(self.free)))
        if self.decision < math.inf:
            window = self.settings.autoscaling_window
            self.decision = min(self.decision, math.ceil(now / window) * window)

    def decide(self, now: float) -> None:
        """Compare what is wanted with what is there, and start or end replicas."""
        settings, there, came, finished = self.settings, len(self.free), self.came, self.finished
        window, ended = settings.autoscaling_window, now - self.machine.image
        self.came = bisect.bisect_right(self.arrivals, now, came)
        self.finished = bisect.bisect_right(self.starts, ended, finished)
        seconds = (came - finished) * window + sum(now - at for at in self.arrivals[came : self.came])
        seconds -= sum(ended - start for start in self.starts[finished : self.finished])
        # To zero it comes by itself, when there was no traffic for the whole delay.
        wanted = max(wanted_replicas(seconds / window, settings), self.least, 1)
        wanted = min(wanted, max(settings.max_replica, self.least))
        self.decision = now + window
        if wanted >= there:
            self.below_since = None
        elif self.below_since is None:
            self.below_since = now
        elif now - self.below_since >= settings.scale_down_delay:
            self.end(now, math.ceil((there - wanted) * settings.max_scale_down_rate / 100))
            self.below_since = now
        if wanted > there > 0:
            self.begin(now, wanted - there)
        elif self.came == self.finished and there <= max(self.least, 1):
            # Until the next request comes there is nothing to decide.
            upcoming = min([self.span, *self.arrivals[self.came : self.came + 1]])
            self.decision = (upcoming // window + 1) * window


def wanted_replicas(in_flight: float, settings: Settings) -> int:
    """Return how many replicas so many requests in flight call for, without the bounds."""
    capacity = settings.concurrency_target * settings.target_utilization_percentage / 100
    return math.ceil(in_flight / capacity - 1e-9)

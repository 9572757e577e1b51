"""Simulates waits and costs under autoscaling settings, by the rules of Baseten's docs. Times: seconds since the start.

deployment/autoscaling/overview: the wanted replicas are the requests in flight, averaged over autoscaling_window,
divided by concurrency_target x target_utilization_percentage, rounded up. New replicas start at once. When load was
lower for scale_down_delay, max_scale_down_rate percent of the excess replicas end, and so on.
deployment/autoscaling/cold-starts: after scale_down_delay without traffic all replicas end; the next request waits in a
queue and starts one. organization/billing: by the minute, from when a replica is up on a node.
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
# What the docs leave open.
ASSUMPTIONS = (
    "Requests wait in one queue, first come first served, and a replica makes one image at a time "
    "(predict_concurrency 1). Nobody leaves and nothing fails. All images take the same time, and so do cold starts.",
    "The last replica ends scale_down_delay after the last image, wake, start or end of a schedule. Scaling between "
    "one and more replicas is decided once per autoscaling_window.",
    "A replica that is no longer wanted finishes its image first. Replicas are billed in whole minutes.",
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Seconds: cold_start from wake to ready, image for one image, unbilled before the container runs."""

    cold_start: float
    image: float
    unbilled: float = 0.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """Baseten's autoscaling settings. wakes: whether the app wakes the model when it opens.

    windows: (start, end) of a schedule, sorted and disjoint, with window_replicas as the minimum.
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
    """arrivals, starts: when each request came and when its image began, sorted. billed: seconds."""

    arrivals: Sequence[float]
    starts: Sequence[float]
    cold_starts: int
    billed: float

    @functools.cached_property
    def delays(self) -> list[float]:
        """Seconds from each request to the start of its image, shortest first."""
        return sorted(map(operator.sub, self.starts, self.arrivals))

    def late(self, seconds: float) -> float:
        """Return the share of the requests with a longer delay."""
        return (len(self.delays) - bisect.bisect_right(self.delays, seconds + 1e-9)) / max(len(self.delays), 1)

    def mean(self) -> float:
        return sum(self.delays) / max(len(self.delays), 1)

    def percentile(self, percent: int) -> float:
        """Return the percentile of the delays by the nearest-rank method, 0 without requests."""
        return self.delays[max(-(-len(self.delays) * percent // 100) - 1, 0)] if self.delays else 0.0


def simulate(
    arrivals: Sequence[float], span: float, settings: Settings, machine: Machine, opened: Sequence[float] = ()
) -> Outcome:
    """Serve the requests under the settings.

    arrivals: when each request is sent, sorted, from 0 to span. opened: when the app was opened, sorted; used only with
    settings.wakes. Requests still waiting at span are served to the end, but billed only until span.
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
        self.free = [0.0] * self.least  # heap: when each replica is free, or ready if it is starting
        self.born = deque(self.free)  # when billing of each replica began, oldest first
        self.starts: list[float] = []  # when the image of each request began; served in order
        self.asleep = math.inf if self.least else -math.inf  # the last replicas end no earlier than this
        # If minimum and maximum are equal there is nothing to decide.
        most = max(settings.max_replica, settings.window_replicas if settings.windows else 0)
        self.decision = settings.autoscaling_window if most > max(self.least, 1) else math.inf
        self.below_since: float | None = None
        self.came = self.finished = self.cold_starts = 0  # came, finished: as of the last decision
        self.billed = 0.0

    def serve(self, until: float) -> None:
        """Begin the images of arriving requests while a replica is free before `until`."""
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
        """Scale to zero after the delay without traffic, and let the app wake the model, until now."""
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
        """End the replicas that are free first. A busy one finishes its image."""
        for _ in range(count):
            until = max(at, min(heapq.heappop(self.free), self.span))
            self.billed += MINUTE * math.ceil(max(0.0, until - self.born.popleft()) / MINUTE - 1e-9)

    def change_least(self, now: float, least: int) -> None:
        """Apply the new minimum when a window of the schedule begins or ends."""
        self.least = least
        self.asleep = math.inf if least else now + self.settings.scale_down_delay
        self.begin(now, max(0, least - len(self.free)))
        if self.decision < math.inf:
            window = self.settings.autoscaling_window
            self.decision = min(self.decision, math.ceil(now / window) * window)

    def decide(self, now: float) -> None:
        """Compare the wanted with the running replicas, and start or end some."""
        settings, there, came, finished = self.settings, len(self.free), self.came, self.finished
        window, ended = settings.autoscaling_window, now - self.machine.image
        self.came = bisect.bisect_right(self.arrivals, now, came)
        self.finished = bisect.bisect_right(self.starts, ended, finished)
        seconds = (came - finished) * window + sum(now - at for at in self.arrivals[came : self.came])
        seconds -= sum(ended - start for start in self.starts[finished : self.finished])
        # fall_asleep() scales to zero.
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
            # Nothing to decide until the next request.
            upcoming = min([self.span, *self.arrivals[self.came : self.came + 1]])
            self.decision = (upcoming // window + 1) * window


def wanted_replicas(in_flight: float, settings: Settings) -> int:
    """Return the replicas for this many requests in flight, before applying the bounds."""
    capacity = settings.concurrency_target * settings.target_utilization_percentage / 100
    return math.ceil(in_flight / capacity - 1e-9)

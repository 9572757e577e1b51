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
    def waits(self) -> list[float]:
        """The delays, in seconds before the image was begun, of those who waited at all, the shortest first."""
        return sorted(delay for delay in map(operator.sub, self.starts, self.arrivals) if delay > 0)

    def late(self, seconds: float) -> float:
        """Return the share of the requests with a longer delay."""
        return (len(self.waits) - bisect.bisect_right(self.waits, seconds + 1e-9)) / max(len(self.starts), 1)

    def mean(self) -> float:
        """Return the mean delay; 0 without requests."""
        return sum(self.waits) / max(len(self.starts), 1)

    def percentile(self, percent: int) -> float:
        """Return the smallest delay that is not below percent of them (the nearest rank); 0 without requests."""
        place = len(self.waits) - len(self.starts) + -(-len(self.starts) * percent // 100) - 1
        return self.waits[place] if 0 <= place < len(self.waits) else 0.0


def simulate(
    arrivals: Sequence[float], span: float, settings: Settings, machine: Machine, opened: Sequence[float] = ()
) -> Outcome:
    """Serve the requests under the settings.

    arrivals: when each request is sent, in order, within 0 to span. opened: when the app was opened, in order; it is
    read only where settings.wakes. What is not served at span is served to its end, and billed until span alone.
    """
    return _Run(arrivals, span, settings, machine, opened if settings.wakes else ()).run()


class _Run:
    def __init__(
        self, arrivals: Sequence[float], span: float, settings: Settings, machine: Machine, opened: Sequence[float]
    ) -> None:
        self.arrivals, self.span, self.settings, self.machine = arrivals, span, settings, machine
        self.opened, self.least = opened, settings.min_replica
        # Without room between the least and the most there is nothing to decide.
        most = max(settings.max_replica, settings.window_replicas if settings.windows else 0)
        self.decides = most > max(settings.min_replica, 1)
        self.free = [0.0] * self.least  # a heap: when each replica is free; of one that starts, when it is ready
        self.born = deque(self.free)  # when each of them began to be paid for, oldest first
        self.starts: list[float] = []  # when the image of each request was begun: they are served in order
        # When the last replicas end, if nothing comes, and no image was made.
        self.limit = settings.scale_down_delay if self.least else -math.inf
        self.below_since: float | None = None
        self.next_decision = math.inf
        self.cold_starts, self.billed = 0, 0.0
        self.came = self.finished = 0  # before the window of the next decision
        if self.least:
            self.plan_decision(0.0)

    def run(self) -> Outcome:
        settings, span = self.settings, self.span
        inside = max(settings.min_replica, settings.window_replicas)
        changes = []
        for start, end in settings.windows:
            if max(start, 0.0) < min(end, span):
                changes += [(max(start, 0.0), inside), (min(end, span), settings.min_replica)]
        changes.append((math.inf, 0))
        event = 0.0
        while event < span:
            event = min(self.next_decision, changes[0][0], span)
            if self.serve(event):
                event = 0.0  # a replica started from zero, and with it the decisions
                continue
            if self.least == 0:
                self.fall_asleep(event)
            if event < span and event == changes[0][0]:
                self.change_least(*changes.pop(0))
            elif event < span and event == self.next_decision:  # it was put off if they fell asleep just now
                self.decide(event)
        self.serve(math.inf)
        self.end(span, len(self.free))
        return Outcome(self.arrivals, self.starts, self.cold_starts, self.billed)

    def serve(self, until: float) -> bool:
        """Begin the images of those who come, as far as a replica is free until then.

        Returns True as soon as one of them finds no replica, which starts one: decisions may come before until then.
        """
        arrivals, starts, free, image = self.arrivals, self.starts, self.free, self.machine.image
        awake = image + self.settings.scale_down_delay if self.least == 0 else math.inf
        last = bisect.bisect_right(arrivals, until, len(starts))
        limit = max(self.limit, starts[-1] + awake) if starts else self.limit if self.least == 0 else math.inf
        for place in range(len(starts), last):
            at = arrivals[place]
            if not free or at > limit:
                self.fall_asleep(at)
                if not free:
                    self.begin(at, 1, at)
                return True
            ready = free[0]
            if ready > until:
                break
            start = at if at > ready else ready
            starts.append(start)
            heapq.heapreplace(free, start + image)
            if start + awake > limit:
                limit = start + awake
        return False

    def fall_asleep(self, now: float) -> None:
        """End what had no traffic for the whole delay, and let the app wake it, until now."""
        delay = self.settings.scale_down_delay
        if self.starts:
            self.limit = max(self.limit, self.starts[-1] + self.machine.image + delay)
        while now > self.limit:  # all replicas are idle then
            place = bisect.bisect_right(self.opened, self.limit)
            if self.free and place and self.opened[place - 1] + delay > self.limit:
                self.limit = self.opened[place - 1] + delay
                continue
            self.end(self.limit, len(self.free))
            self.next_decision, self.below_since = math.inf, None
            if place == len(self.opened) or self.opened[place] > now:
                return
            self.begin(self.opened[place], 1, now)

    def begin(self, at: float, count: int, now: float) -> None:
        """Start replicas at a time that is not after now."""
        ready = at + self.machine.cold_start
        for _ in range(count):
            heapq.heappush(self.free, ready)
            self.born.append(at + self.machine.unbilled)
        self.cold_starts += count
        self.limit = max(self.limit, ready + self.settings.scale_down_delay)
        if self.next_decision == math.inf:
            self.plan_decision(now)

    def end(self, at: float, count: int) -> None:
        """End those that are free first. One that is busy finishes its image."""
        for _ in range(count):
            until = max(at, min(heapq.heappop(self.free), self.span))
            self.billed += MINUTE * math.ceil(max(0.0, until - self.born.popleft()) / MINUTE - 1e-9)

    def change_least(self, now: float, least: int) -> None:
        """A window of the schedule begins or ends."""
        self.least = least
        if len(self.free) < least:
            self.begin(now, least - len(self.free), now)
        elif self.free:
            self.limit = max(self.limit, now + self.settings.scale_down_delay)
            if self.decides:
                window = self.settings.autoscaling_window
                self.next_decision = min(self.next_decision, math.ceil(now / window) * window)

    def plan_decision(self, now: float) -> None:
        """The next one falls at the end of the window that now is in."""
        window = self.settings.autoscaling_window
        if self.decides:
            self.next_decision = (now // window + 1) * window
            self.count(self.next_decision - window)

    def count(self, now: float) -> float:
        """Return the seconds from the last count on that all requests together were in flight, if none were before."""
        came, finished, image = self.came, self.finished, self.machine.image
        self.came = bisect.bisect_right(self.arrivals, now, came)
        self.finished = bisect.bisect_right(self.starts, now - image, finished)
        ended = self.finished - finished
        started = sum(self.arrivals[came : self.came])
        return (self.came - came - ended) * now - started + sum(self.starts[finished : self.finished]) + ended * image

    def decide(self, now: float) -> None:
        """Compare what is wanted with what is there, and start or end replicas."""
        settings, there = self.settings, len(self.free)
        in_flight = self.came - self.finished + self.count(now) / settings.autoscaling_window
        # To zero it comes by itself, when there was no traffic for the whole delay.
        wanted = max(wanted_replicas(in_flight, settings), self.least, 1)
        wanted = min(wanted, max(settings.max_replica, self.least))
        self.next_decision = now + settings.autoscaling_window
        if wanted >= there:
            self.below_since = None
            if wanted > there:
                self.begin(now, wanted - there, now)
            elif self.came == self.finished and there == max(self.least, 1):
                # Until the next request comes there is nothing to decide.
                self.next_decision = math.inf
                if self.came < len(self.arrivals):
                    self.plan_decision(self.arrivals[self.came])
        elif self.below_since is None:
            self.below_since = now
        elif now - self.below_since >= settings.scale_down_delay:
            self.end(now, math.ceil((there - wanted) * settings.max_scale_down_rate / 100))
            self.below_since = now


def wanted_replicas(in_flight: float, settings: Settings) -> int:
    """Return how many replicas so many requests in flight call for, without the bounds."""
    capacity = settings.concurrency_target * settings.target_utilization_percentage / 100
    return math.ceil(in_flight / capacity - 1e-9)

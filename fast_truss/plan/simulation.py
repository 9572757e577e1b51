"""What users wait and what replicas cost under autoscaling settings: pure functions, nothing is asked or printed.

All times are seconds from the start of the traffic. The rules are those of Baseten's documents:

* deployment/autoscaling/overview: requests in flight are averaged over autoscaling_window and divided by
  concurrency_target x target_utilization_percentage, rounded up: so many replicas are wanted. More start at that
  decision. Load must stay lower for a whole scale_down_delay before max_scale_down_rate percent (50: half) of what is
  too much ends, and again after each further delay.
* deployment/autoscaling/cold-starts: once there was no traffic for the whole scale_down_delay every replica ends, and
  the next request, which waits in a queue, starts one.
* organization/billing: by the minute, from the moment a replica is up on a node, so that loading the model is paid for,
  and acquiring a machine and pulling the image are not.

What the documents leave open is ASSUMPTIONS, which the command prints with its answer.
"""

import bisect
import dataclasses
import functools
import itertools
import math
import operator
from collections import deque
from collections.abc import Sequence

MINUTE = 60.0
ASSUMPTIONS = (
    "Requests wait in one queue, first come first served, and a replica makes one image at a time "
    "(predict_concurrency 1): nobody leaves, and nothing fails.",
    "Every image takes the same time, and so does every cold start.",
    "The last replica ends when scale_down_delay has passed since the last image, wake, start or end of a schedule; "
    "decisions about more than one replica fall once per autoscaling_window.",
    "A replica that is no longer wanted finishes its image first. The time that a replica is up is paid for in whole "
    "minutes.",
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Seconds. cold_start: from the wake until a replica answers. image: of one request on a warm replica.

    unbilled: of the cold start, before the container runs. Raises ValueError for what cannot be.
    """

    cold_start: float
    image: float
    unbilled: float = 0.0

    def __post_init__(self) -> None:
        if not (self.cold_start >= 0 and self.image > 0 and 0 <= self.unbilled <= self.cold_start):
            raise ValueError(f"No such machine: {self}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Baseten's autoscaling settings under their own names, and who wakes.

    wakes: the app wakes the model when it is opened. windows: (start, end) of a schedule, in order and apart, in which
    window_replicas are the least.
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
    """When each request came and when its image was begun, in order, and how many seconds are billed.

    cold_starts: replicas that were started; those that are there from the beginning do not count.
    """

    arrivals: Sequence[float]
    starts: Sequence[float]
    cold_starts: int
    billed: float

    @property
    def delays(self) -> list[float]:
        """Seconds of each request before its image was begun, in order."""
        return list(map(operator.sub, self.starts, self.arrivals))

    @functools.cached_property
    def waits(self) -> list[float]:
        """The delays of those who waited at all, the shortest first."""
        return sorted([start - at for start, at in zip(self.starts, self.arrivals, strict=True) if start > at])

    def mean(self) -> float:
        """Return the mean delay in seconds; 0 without requests."""
        return sum(self.waits) / len(self.starts) if self.starts else 0.0

    def percentiles(self, *percents: int) -> list[float]:
        """Return the smallest delay that is not below percent of them, for each (the nearest rank). 0 without any."""
        at_once = len(self.starts) - len(self.waits)
        places = [-(-len(self.starts) * percent // 100) - 1 - at_once for percent in percents]
        return [self.waits[place] if place >= 0 and self.waits else 0.0 for place in places]


def simulate(
    arrivals: Sequence[float],
    span: float,
    settings: Settings,
    machine: Machine,
    opened: Sequence[float] = (),
    pauses: Sequence[int] | None = None,
) -> Outcome:
    """Serve the requests under the settings.

    arrivals: when each request is sent, in order, within 0 to span. opened: when the app was opened, in order; it is
    read only where settings.wakes. pauses: those of arrivals, of a scale_down_delay at most, if they are known.
    What is not served at span is served to its end, and billed until span alone.
    """
    found = pauses_of(arrivals, settings.scale_down_delay, pauses)
    return _Run(arrivals, span, settings, machine, opened if settings.wakes else (), found).run()


def pauses_of(arrivals: Sequence[float], seconds: float, among: Sequence[int] | None = None) -> list[int]:
    """Return the numbers of the requests, among some, before which none came for longer than seconds. 0 is one."""
    if among is not None:
        return [number for number in among if not number or arrivals[number] - arrivals[number - 1] > seconds]
    gaps = map(operator.sub, itertools.islice(arrivals, 1, None), arrivals)
    return [0, *(number for number, gap in enumerate(gaps, 1) if gap > seconds)]


class _Run:
    """The state of one simulation. Only after a pause can there be no replica: the others are taken many at once."""

    def __init__(
        self,
        arrivals: Sequence[float],
        span: float,
        settings: Settings,
        machine: Machine,
        opened: Sequence[float],
        pauses: Sequence[int],
    ) -> None:
        self.arrivals, self.span, self.settings, self.machine = arrivals, span, settings, machine
        self.opened, self.pauses, self.pause = opened, pauses, 0
        # Without room between the least and the most there is nothing to decide.
        most = max(settings.max_replica, settings.window_replicas if settings.windows else 0)
        self.decides = most > max(settings.min_replica, 1)
        self.least = settings.min_replica
        self.free: list[float] = []  # in order: when each replica is free; of one that starts, when it is ready
        self.born: deque[float] = deque()  # when each of them began to be paid for, oldest first
        self.starts: list[float] = []  # when the image of each request was begun: in order, as they are served in order
        self.arrived = 0
        self.limit = -math.inf  # when the last replicas end, if nothing comes, and no image was made
        self.below_since: float | None = None
        self.next_decision = math.inf
        self.cold_starts = 0
        self.billed = 0.0
        # Before the window of the next decision.
        self.came, self.finished = 0, 0
        for _ in range(self.least):
            self.free.append(0.0)
            self.born.append(0.0)
        if self.least:
            self.limit = settings.scale_down_delay
            self.plan_decision(0.0)

    def run(self) -> Outcome:
        inside = max(self.settings.min_replica, self.settings.window_replicas)
        changes: list[tuple[float, int]] = []
        for start, end in self.settings.windows:
            if max(start, 0.0) < min(end, self.span):
                changes += [(max(start, 0.0), inside), (min(end, self.span), self.settings.min_replica)]
        position = 0
        while True:
            change = changes[position][0] if position < len(changes) else math.inf
            event = min(self.next_decision, change, self.span)
            last = bisect.bisect_right(self.arrivals, event, self.arrived)
            self.pause = bisect.bisect_left(self.pauses, self.arrived, self.pause)
            if self.least == 0 and self.pause < len(self.pauses) and self.pauses[self.pause] < last:
                self.go_on(self.pauses[self.pause])
                continue  # a replica may have started from zero, and with it the decisions
            self.arrived = last
            self.serve(event)
            if self.least == 0:
                self.fall_asleep(event)
            if event >= self.span:
                break
            if event == change:
                self.change_least(event, changes[position][1])
                position += 1
            elif event == self.next_decision:  # it was put off if they fell asleep just now
                self.decide(event)
        self.serve(math.inf)
        self.end(self.span, len(self.free))
        return Outcome(self.arrivals, self.starts, self.cold_starts, self.billed)

    def go_on(self, number: int) -> None:
        """Take the requests up to this one, which comes after a pause: it may find no replica."""
        now, self.arrived = self.arrivals[number], number
        self.serve(now)
        self.fall_asleep(now)
        if not self.free:
            self.begin(now, 1, now)
        self.arrived += 1
        self.serve(now)

    def serve(self, until: float) -> None:
        """Begin the images of those who wait, as far as a replica is free until then."""
        arrivals, starts, image = self.arrivals, self.starts, self.machine.image
        while (head := len(starts)) < self.arrived and self.free[0] <= until:
            first = max(self.free[0], arrivals[head])
            # They take turns, as all images take the same time: all but those that are free, or ready, much later.
            count = bisect.bisect_right(self.free, first + image)
            turns, later = self.free[:count], self.free[count:]
            limit = min(until, later[0]) if later else until
            last = head + int(min(self.arrived - head, count * ((limit - first) / image + 1)))
            for at, free in zip(arrivals[head:last], turns, strict=False):  # turns grows meanwhile
                start = at if at > free else free
                if start > limit:
                    break
                starts.append(start)
                turns.append(start + image)
            self.free = sorted(turns[len(starts) - head :] + later)

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
            bisect.insort(self.free, ready)
            self.born.append(at + self.machine.unbilled)
        self.cold_starts += count
        self.limit = max(self.limit, ready + self.settings.scale_down_delay)
        if self.next_decision == math.inf:
            self.plan_decision(now)

    def end(self, at: float, count: int) -> None:
        """End those that are free first. One that is busy finishes its image."""
        for free in self.free[:count]:
            until = max(at, min(free, self.span))
            self.billed += MINUTE * math.ceil(max(0.0, until - self.born.popleft()) / MINUTE - 1e-9)
        del self.free[:count]

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

    def after(self, now: float) -> float:
        """Return when decisions fall next after now."""
        window = self.settings.autoscaling_window
        return (now // window + 1) * window

    def plan_decision(self, now: float) -> None:
        if self.decides:
            self.next_decision = self.after(now)
            self.count(self.next_decision - self.settings.autoscaling_window)

    def count(self, now: float) -> float:
        """Return the seconds from the last count on that all requests together were in flight, if none were before."""
        came, finished, image = self.came, self.finished, self.machine.image
        self.came = bisect.bisect_right(self.arrivals, now, came, self.arrived)
        self.finished = bisect.bisect_right(self.starts, now - image, finished)
        ended = self.finished - finished
        started = sum(self.arrivals[came : self.came])
        return (self.came - came - ended) * now - started + sum(self.starts[finished : self.finished]) + ended * image

    def decide(self, now: float) -> None:
        """Compare what is wanted with what is there, and start or end replicas."""
        settings, there = self.settings, len(self.free)
        before = self.came - self.finished
        in_flight = before + self.count(now) / settings.autoscaling_window
        wanted = wanted_replicas(in_flight, settings)
        # To zero it comes by itself, when there was no traffic for the whole delay.
        wanted = min(max(wanted, self.least, 1), max(settings.max_replica, self.least))
        self.next_decision = now + settings.autoscaling_window
        if wanted >= there:
            self.below_since = None
            if wanted > there:
                self.begin(now, wanted - there, now)
            elif self.came == self.finished and there == max(self.least, 1):
                # Until the next request comes there is nothing to decide.
                self.next_decision = math.inf
                if self.came < len(self.arrivals):
                    self.next_decision = self.after(self.arrivals[self.came])
        elif self.below_since is None:
            self.below_since = now
        elif now - self.below_since >= settings.scale_down_delay:
            self.end(now, math.ceil((there - wanted) * settings.max_scale_down_rate / 100))
            self.below_since = now


def wanted_replicas(in_flight: float, settings: Settings) -> int:
    """Return how many replicas so many requests in flight call for, without the bounds."""
    capacity = settings.concurrency_target * settings.target_utilization_percentage / 100
    return math.ceil(in_flight / capacity - 1e-9)

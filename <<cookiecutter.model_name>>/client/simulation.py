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
import heapq
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
    """delays: seconds of each request before its image was begun, in order. billed: seconds, in whole minutes.

    cold_starts: replicas that were started; those that are there from the beginning do not count.
    """

    delays: list[float]
    cold_starts: int
    billed: float

    def mean(self) -> float:
        """Return the mean delay in seconds; 0 without requests."""
        return math.fsum(self.delays) / len(self.delays) if self.delays else 0.0

    def percentiles(self, *percents: int) -> list[float]:
        """Return the smallest delay that is not below percent of them, for each (the nearest rank). 0 without any."""
        waited = sorted(delay for delay in self.delays if delay > 0)
        at_once = len(self.delays) - len(waited)
        places = [-(-len(self.delays) * percent // 100) - 1 - at_once for percent in percents]
        return [waited[place] if place >= 0 and waited else 0.0 for place in places]


def simulate(
    arrivals: Sequence[float], span: float, settings: Settings, machine: Machine, opened: Sequence[float] = ()
) -> Outcome:
    """Serve the requests under the settings.

    arrivals: when each request is sent, in order, within 0 to span. opened: when the app was opened, in order; it is
    read only where settings.wakes. What is not served at span is served to its end, and billed until span alone.
    """
    return _Run(arrivals, span, settings, machine, opened if settings.wakes else ()).run()


class _Run:
    """The state of one simulation. Requests are taken by the hundreds; all else happens seldom, in methods."""

    def __init__(
        self,
        arrivals: Sequence[float],
        span: float,
        settings: Settings,
        machine: Machine,
        opened: Sequence[float],
    ) -> None:
        self.arrivals, self.span, self.settings, self.machine, self.opened = arrivals, span, settings, machine, opened
        self.most = max(settings.max_replica, settings.window_replicas if settings.windows else 0)
        self.least = settings.min_replica
        self.free: list[float] = []  # a heap: when each replica is free; of one that starts, when it is ready
        self.born: deque[float] = deque()  # when each of them began to be paid for, oldest first
        self.starts: list[float] = []  # when the image of each request was begun: in order, as they are served in order
        self.arrived = 0
        self.limit = -math.inf  # when the last replicas end, if nothing comes
        self.below_since: float | None = None
        self.next_decision = math.inf
        self.cold_starts = 0
        self.billed = 0.0
        # For the mean number in flight: sums over what arrived and over what was finished.
        self.sums = list(itertools.accumulate(arrivals, initial=0.0)) if self.most > 1 else []
        self.finished, self.finished_sum = 0, 0.0
        self.area_before = 0.0
        for _ in range(self.least):
            heapq.heappush(self.free, 0.0)
            self.born.append(0.0)
        if self.least:
            self.limit = settings.scale_down_delay
            self.plan_decision(0.0)

    def run(self) -> Outcome:
        changes = [(at, least) for window in self.settings.windows for at, least in self.changes_of(window)]
        position = 0
        while True:
            change = changes[position][0] if position < len(changes) else math.inf
            event = min(self.next_decision, change, self.span)
            last = bisect.bisect_right(self.arrivals, event, self.arrived)
            if last > self.arrived and self.take(last):
                continue  # a replica started from zero, and with it the decisions
            self.settle(event)
            if event >= self.span:
                break
            if event == change:
                self.change_least(event, changes[position][1])
                position += 1
            elif event == self.next_decision:  # it was put off if they fell asleep just now
                self.decide(event)
        self.take(len(self.arrivals))
        self.serve(math.inf)
        self.end(self.span, len(self.free))
        delays = list(map(operator.sub, self.starts, self.arrivals))
        return Outcome(delays, self.cold_starts, self.billed)

    def changes_of(self, window: tuple[float, float]) -> list[tuple[float, int]]:
        start, end = max(window[0], 0.0), min(window[1], self.span)
        if end <= start:
            return []
        inside = max(self.settings.min_replica, self.settings.window_replicas)
        return [(start, inside), (end, self.settings.min_replica)]

    def take(self, last: int) -> bool:
        """Take the requests up to number last. Returns True, and early, if decisions may be due from now on."""
        arrivals, free, starts, limit = self.arrivals, self.free, self.starts, self.limit
        image, hold = self.machine.image, self.machine.image + self.settings.scale_down_delay
        sleeps, head, replace = self.least == 0, len(self.starts), heapq.heapreplace
        for number in range(self.arrived, last):
            now = arrivals[number]
            while head < number and free[0] <= now:  # those who came before
                start = free[0] if free[0] > arrivals[head] else arrivals[head]
                starts.append(start)
                replace(free, start + image)
                head += 1
                if start + hold > limit:
                    limit = start + hold
            woken = False
            if now > limit and sleeps:
                self.limit, self.arrived = limit, number
                self.fall_asleep(now)
                if not free:
                    self.begin(now, 1, now)
                limit, woken = self.limit, self.most > 1
            if head == number and free[0] <= now:
                starts.append(now)
                replace(free, now + image)
                head += 1
                if now + hold > limit:
                    limit = now + hold
            if woken:
                self.limit, self.arrived = limit, number + 1
                return True
        self.limit, self.arrived = limit, max(self.arrived, last)
        return False

    def serve(self, now: float) -> None:
        """Begin the images of those who wait, as far as a replica is free by now."""
        hold = self.machine.image + self.settings.scale_down_delay
        while len(self.starts) < self.arrived and self.free[0] <= now:
            start = max(self.free[0], self.arrivals[len(self.starts)])
            self.starts.append(start)
            heapq.heapreplace(self.free, start + self.machine.image)
            self.limit = max(self.limit, start + hold)

    def settle(self, now: float) -> None:
        """Let pass what comes of itself by now."""
        self.serve(now)
        if self.least == 0 and now > self.limit:
            self.fall_asleep(now)

    def fall_asleep(self, now: float) -> None:
        """End what has no traffic, and let the app wake it, until now. All replicas are idle at self.limit."""
        delay = self.settings.scale_down_delay
        while now > self.limit:
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

    def plan_decision(self, now: float) -> None:
        if self.most > 1:
            window = self.settings.autoscaling_window
            self.next_decision = (now // window + 1) * window
            self.area_before = self.area(self.next_decision - window)

    def area(self, now: float) -> float:
        """Return the seconds that all requests together were in flight until now. The calls are in order of now."""
        image = self.machine.image
        while self.finished < len(self.starts) and self.starts[self.finished] + image <= now:
            self.finished_sum += self.starts[self.finished] + image
            self.finished += 1
        arrived = bisect.bisect_right(self.arrivals, now, 0, self.arrived)
        return arrived * now - self.sums[arrived] - (self.finished * now - self.finished_sum)

    def decide(self, now: float) -> None:
        """Compare what is wanted with what is there, and start or end replicas."""
        area = self.area(now)
        in_flight = (area - self.area_before) / self.settings.autoscaling_window
        self.area_before, self.next_decision = area, now + self.settings.autoscaling_window
        settings, there = self.settings, len(self.free)
        wanted = wanted_replicas(in_flight, settings)
        # To zero it comes by itself, when there was no traffic for the whole delay.
        wanted = min(max(wanted, self.least, 1), max(settings.max_replica, self.least))
        if wanted >= there:
            self.below_since = None
            if wanted > there:
                self.begin(now, wanted - there, now)
        elif self.below_since is None:
            self.below_since = now
        elif now - self.below_since >= settings.scale_down_delay:
            self.end(now, math.ceil((there - wanted) * settings.max_scale_down_rate / 100))
            self.below_since = now


def wanted_replicas(in_flight: float, settings: Settings) -> int:
    """Return how many replicas so many requests in flight call for, without the bounds."""
    capacity = settings.concurrency_target * settings.target_utilization_percentage / 100
    return math.ceil(in_flight / capacity - 1e-9)

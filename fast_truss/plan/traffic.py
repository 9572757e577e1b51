"""Traffic: when requests come, and the hours of the week in which most of them do."""

import dataclasses
import datetime
import random
from collections import Counter
from collections.abc import Sequence

from fast_truss.errors import InvalidInput

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY = 86400.0
WEEK = 7 * DAY
MOST_REQUESTS = 2_000_000
# Fewer say nothing of a month, or little.
FEWEST_REQUESTS, ENOUGH_REQUESTS = 20, 200
TYPING_SIGMA = 0.6  # of the natural logarithm of the seconds that a visitor types


@dataclasses.dataclass(frozen=True)
class Hours:
    """A window on each of some days. days: 0 is Monday. start, end: seconds after midnight."""

    days: tuple[int, ...]
    start: float
    end: float

    @property
    def weekdays(self) -> str:
        """Such as mon-fri, mon,wed or daily."""
        names = [DAYS[day] for day in self.days]
        if len(names) == 7:
            return "daily"
        in_a_row = len(names) > 2 and self.days[-1] - self.days[0] == len(names) - 1
        return f"{names[0]}-{names[-1]}" if in_a_row else ",".join(names)

    def __str__(self) -> str:
        # Baseten's schedules know no 24:00.
        ends = (datetime.timedelta(seconds=min(seconds, DAY - 60)) for seconds in (self.start, self.end))
        return f"{self.weekdays} {' to '.join(f'{datetime.datetime.min + end:%H:%M}' for end in ends)}"


@dataclasses.dataclass(frozen=True)
class Traffic:
    """arrivals: seconds since origin, in order. span: seconds that they stand for. origin: in the local time zone.

    hours: when most requests come, if known; else busy_hours() finds it. notes: what was assumed, in sentences.
    """

    arrivals: list[float]
    span: float
    origin: datetime.datetime
    source: str
    hours: Hours | None = None
    notes: tuple[str, ...] = ()

    def by_hour(self) -> Counter[tuple[int, int]]:
        """Return how many requests came on each day of the week, where 0 is Monday, in each hour."""
        start, zone = self.origin.timestamp(), self.origin.tzinfo
        moments = (datetime.datetime.fromtimestamp(start + at, zone) for at in self.arrivals)
        return Counter((moment.weekday(), moment.hour) for moment in moments)

    def windows(self, hours: Hours) -> tuple[tuple[float, float], ...]:
        """Return (start, end) of hours on each of its days, in seconds since origin."""
        midnight = datetime.datetime.combine(self.origin, datetime.time(), self.origin.tzinfo)
        found = []
        for number in range(-1, int(self.span / DAY) + 2):
            # Such sums are of local time, also where clocks change.
            ends = [midnight + datetime.timedelta(number, seconds) for seconds in (hours.start, hours.end)]
            start, end = (moment.timestamp() - self.origin.timestamp() for moment in ends)
            if ends[0].weekday() in hours.days and end > 0 and start < self.span:
                found.append((start, end))
        return tuple(found)

    def warnings(self) -> list[str]:
        """Return a sentence if it says little of a month. Raises InvalidInput if it says nothing."""
        count, days = len(self.arrivals), self.span / DAY
        holds = f"{self.source} holds {count} requests in {days:.2g} days"
        enough = f"Use {ENOUGH_REQUESTS} requests and a week to rely on it"
        if count < FEWEST_REQUESTS or days < 0.95:
            least = f"too little to plan a month ({FEWEST_REQUESTS} in a day are the least)"
            raise InvalidInput(f"{holds}, {least}. {enough}, or --pattern. --days says what a file stands for.")
        return [f"Little data: {holds}. {enough}."] if count < ENOUGH_REQUESTS or days < 6.95 else []


def opened(arrivals: Sequence[float], typing: float, seed: int) -> list[float]:
    """Return when the visitors opened the app, in order: they typed for a log-normal time with the median typing."""
    chance = random.Random(seed)
    return sorted(max(0.0, at - typing * chance.lognormvariate(0.0, TYPING_SIGMA)) for at in arrivals)


def busy_hours(traffic: Traffic) -> Hours | None:
    """Return the shortest whole hours with 90 percent of the requests of their days; None: it is around the clock."""
    counts = traffic.by_hour()
    # Those with at least half of what an average day brings.
    days = [day for day in range(7) if sum(counts[day, hour] for hour in range(24)) >= counts.total() / 14]
    by_hour = [sum(counts[day, hour] for day in days) for hour in range(24)]
    for length in range(1, 20):
        for start in range(25 - length):
            if sum(by_hour[start : start + length]) >= 0.9 * sum(by_hour):
                return Hours(tuple(days), start * 3600.0, (start + length) * 3600.0)
    return None

"""Traffic: when requests arrive, and the busy hours of the week."""

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
# Below the first, a month cannot be planned; below the second, the plan has a warning.
FEWEST_REQUESTS, ENOUGH_REQUESTS = 20, 200
TYPING_SIGMA = 0.6  # sigma of the log-normal distribution of a visitor's typing time


@dataclasses.dataclass(frozen=True)
class Hours:
    """The same window on some days of the week. days: 0 is Monday. start, end: seconds after midnight."""

    days: tuple[int, ...]
    start: float
    end: float

    @property
    def weekdays(self) -> str:
        """The days in words, such as mon-fri, mon,wed or daily."""
        names = [DAYS[day] for day in self.days]
        if len(names) == 7:
            return "daily"
        in_a_row = len(names) > 2 and self.days[-1] - self.days[0] == len(names) - 1
        return f"{names[0]}-{names[-1]}" if in_a_row else ",".join(names)

    def __str__(self) -> str:
        # Baseten's schedules have no 24:00.
        ends = (datetime.timedelta(seconds=min(seconds, DAY - 60)) for seconds in (self.start, self.end))
        return f"{self.weekdays} {' to '.join(f'{datetime.datetime.min + end:%H:%M}' for end in ends)}"


@dataclasses.dataclass(frozen=True)
class Traffic:
    """arrivals: seconds since origin, sorted. span: seconds that they cover. origin: in the local time zone.

    hours: the busy hours if known, otherwise busy_hours() finds them. notes: assumptions, as sentences.
    """

    arrivals: list[float]
    span: float
    origin: datetime.datetime
    source: str
    hours: Hours | None = None
    notes: tuple[str, ...] = ()

    def by_hour(self) -> Counter[tuple[int, int]]:
        """Count the requests by (day of the week, hour), where day 0 is Monday."""
        start, zone = self.origin.timestamp(), self.origin.tzinfo
        moments = (datetime.datetime.fromtimestamp(start + at, zone) for at in self.arrivals)
        return Counter((moment.weekday(), moment.hour) for moment in moments)

    def windows(self, hours: Hours) -> tuple[tuple[float, float], ...]:
        """Return (start, end) of hours on each of its days, in seconds since origin."""
        midnight = datetime.datetime.combine(self.origin, datetime.time(), self.origin.tzinfo)
        found = []
        for number in range(-1, int(self.span / DAY) + 2):
            # Adding to a local datetime keeps the local time across a change of clocks.
            ends = [midnight + datetime.timedelta(number, seconds) for seconds in (hours.start, hours.end)]
            start, end = (moment.timestamp() - self.origin.timestamp() for moment in ends)
            if ends[0].weekday() in hours.days and end > 0 and start < self.span:
                found.append((start, end))
        return tuple(found)

    def warnings(self) -> list[str]:
        """Return a warning if there is little traffic. Raises InvalidInput if there is too little to plan a month."""
        count, days = len(self.arrivals), self.span / DAY
        holds = f"{self.source} holds {count} requests in {days:.2g} days"
        enough = f"Use {ENOUGH_REQUESTS} requests and a week to rely on it"
        if count < FEWEST_REQUESTS or days < 0.95:
            least = f"too few to plan a month (at least {FEWEST_REQUESTS} in a day)"
            raise InvalidInput(f"{holds}, {least}. {enough}, or use --pattern. --days sets what a file covers.")
        return [f"Little data: {holds}. {enough}."] if count < ENOUGH_REQUESTS or days < 6.95 else []


def opened(arrivals: Sequence[float], typing: float, seed: int) -> list[float]:
    """Draw when visitors opened the app, sorted: each typed for a log-normal time with the median `typing`."""
    chance = random.Random(seed)
    return sorted(max(0.0, at - typing * chance.lognormvariate(0.0, TYPING_SIGMA)) for at in arrivals)


def busy_hours(traffic: Traffic) -> Hours | None:
    """Return the shortest window of whole hours with 90 percent of the requests on busy days; None: no such window."""
    counts = traffic.by_hour()
    # Busy days have at least half the requests of an average day.
    days = [day for day in range(7) if sum(counts[day, hour] for hour in range(24)) >= counts.total() / 14]
    by_hour = [sum(counts[day, hour] for day in days) for hour in range(24)]
    for length in range(1, 20):
        for start in range(25 - length):
            if sum(by_hour[start : start + length]) >= 0.9 * sum(by_hour):
                return Hours(tuple(days), start * 3600.0, (start + length) * 3600.0)
    return None

"""Parses traffic such as "weekdays 9 to 18, 40 an hour". Text outside the grammar is refused."""

import datetime
import math
import random
import re

from fast_truss.errors import InvalidInput
from fast_truss.plan.command import EXAMPLE
from fast_truss.plan.traffic import DAY, DAYS, MOST_REQUESTS, WEEK, Hours, Traffic

# Draw four weeks, more for fewer than FEW requests, and one for more than MANY.
FEW, MANY = 1000, 250_000
NAME, CLOCK = f"(?:{'|'.join(DAYS)})", r"\d\d?(?::[0-5]\d)?"
SOME = f"{NAME}(?:-{NAME})?"
GROUPS = {"weekdays": "mon-fri", "weekends": "sat-sun", "daily": "mon-sun"}
# No thousands separators and at most two decimals: 1.000 means different numbers in different countries.
PART = re.compile(
    rf"(?:(?P<days>{'|'.join(GROUPS)}|{SOME}(?:,{SOME})*),? )?"
    rf"(?:(?P<start>{CLOCK}) ?(?:to|-) ?(?P<end>{CLOCK}),? )?"
    r"(?P<number>\d{1,7}(?:\.\d\d?)?) ?(?:an? |per |/)(?P<unit>minute|hour|day|week)",
    re.ASCII,
)


def read_pattern(text: str, seed: int) -> Traffic:
    """Draw four weeks of traffic (more if requests are few, one if many) as a Poisson process.

    text: days, hours and a rate, such as EXAMPLE; parts after `;` are added. Raises InvalidInput.
    """
    parts = [_part(text, part) for part in text.split(";")]
    weekly, busiest = sum(part[0] for part in parts), max(parts, key=lambda part: part[0])[2]
    if not 0.5 <= weekly <= MOST_REQUESTS:
        raise InvalidInput(f"--pattern is {text!r}, which makes {weekly:g} requests a week: use 1 to {MOST_REQUESTS}.")
    weeks = 1 if 4 * weekly > MANY else min(max(4, math.ceil(FEW / weekly)), 52)
    chance = random.Random(seed)
    arrivals = []
    for _, rate, hours in parts:
        for day in [day for day in range(7 * weeks) if day % 7 in hours.days and rate]:
            at = day * DAY + hours.start + chance.expovariate(rate)
            while at < day * DAY + hours.end:
                arrivals.append(at)
                at += chance.expovariate(rate)
    # A Monday in UTC: the pattern is in local time and ignores daylight saving.
    origin = datetime.datetime(2027, 1, 4, tzinfo=datetime.UTC)
    source = f"{'1 week' if weeks == 1 else f'{weeks} weeks'} of {text!r}"
    always = busiest.end - busiest.start == DAY and len(busiest.days) == 7
    return Traffic(sorted(arrivals), weeks * WEEK, origin, source, None if always else busiest)


def _part(text: str, part: str) -> tuple[float, float, Hours]:
    """Return the requests per week of a part, the rate per second in its hours, and the hours. Raises InvalidInput."""
    found = PART.fullmatch(" ".join(part.lower().split()))
    start, end = (_seconds(found["start"] or "0"), _seconds(found["end"] or "24")) if found else (0.0, 0.0)
    if not found or not start < end <= DAY:
        raise InvalidInput(
            f'--pattern is {text!r}: use days, hours (0 to 24, the earlier first) and a rate, as in "{EXAMPLE}" '
            'or "mon-fri 9:30-18 40/hour; sat,sun 100 a day".'
        )
    days = _days(found["days"] or "daily")
    number, length = float(found["number"]), end - start
    seconds = {"minute": 60.0, "hour": 3600.0, "day": length, "week": length * len(days)}[found["unit"]]
    rate = number / seconds
    return rate * length * len(days), rate, Hours(days, start, end)


def _seconds(clock: str) -> float:
    hour, _, minute = clock.partition(":")
    return 3600.0 * int(hour) + 60.0 * int(minute or 0)


def _days(text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in GROUPS.get(text, text).split(","):
        ends = [DAYS.index(name) for name in part.split("-")]
        found |= {(ends[0] + offset) % 7 for offset in range((ends[-1] - ends[0]) % 7 + 1)}
    return tuple(sorted(found))

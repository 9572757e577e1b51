"""Reads traffic in words, such as "weekdays 9 to 18, 40 an hour": all of the text is understood, or it is refused."""

import datetime
import math
import random
import re

from fast_truss.errors import InvalidInput
from fast_truss.plan.command import EXAMPLE
from fast_truss.plan.traffic import DAY, MOST_REQUESTS, WEEK, Hours, Traffic
from fast_truss.schedule import DAYS, weekdays_of

# A month is drawn, or more weeks up to so many requests, or one week of very much.
FEW, MANY = 1000, 250_000
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
RATE = re.compile(
    r"(?<![\w.:-])(?P<number>(?:(?<!to )\d{1,3}(?:,\d{3})+|\d{1,7})(?:\.\d{1,3})?) *"
    r"(?:(?:requests?|images?|calls?|users?|visitors?) *)?(?:an?\b|per\b|each\b|every\b|/) *"
    r"(?P<unit>s|sec|seconds?|m|min|minutes?|h|hr|hours?|d|days?|w|weeks?)\b",
    re.ASCII,
)
HALVES: dict[str | None, int] = {"am": 0, "pm": 12}
HOUR = r"(\d\d?(?::[0-5]\d)?) *(am|pm|h)?"
HOURS = re.compile(rf"(?<![\w.:-]){HOUR} *(?:to|until|-|and) *{HOUR}(?![\w.:/-])", re.ASCII)
DAY_NAME = re.compile(r"\b(mon|tue|wed|thu|fri|sat|sun)(?:s?days?|nesdays?|rs?days?|urdays?|s)?\b")
WORDS = {"weekdays": "mon-fri", "weekday": "mon-fri", "weekends": "sat,sun", "weekend": "sat,sun", "": "daily"}
WORDS |= dict.fromkeys(("every day", "each day", "all day", "24/7", "daily"), "daily")


def read_pattern(text: str, seed: int) -> Traffic:
    """Return four weeks of what text says (more if requests are few, one if many), as a Poisson process.

    text: days, hours and a rate, such as EXAMPLE; more parts after `;` add to it. Raises InvalidInput.
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
    # A Monday, in UTC: the words are local time, and a pattern has no change of clocks.
    origin = datetime.datetime(2027, 1, 4, tzinfo=datetime.UTC)
    source = f"{'1 week' if weeks == 1 else f'{weeks} weeks'} of {text!r}"
    always = busiest.end - busiest.start == DAY and len(busiest.days) == 7
    return Traffic(sorted(arrivals), weeks * WEEK, origin, source, None if always else busiest)


def _plain(text: str) -> str:
    return re.sub(r" *- *", "-", " ".join(text.lower().replace("24/7", "daily").split()))


def _part(text: str, part: str) -> tuple[float, float, Hours]:
    """Return the requests a week of a part, and those a second in its hours."""
    plain = _plain(part)
    rates = list(RATE.finditer(plain))
    if len(rates) != 1:
        raise InvalidInput(
            f"--pattern is {text!r}, and {part.strip()!r} has no clear rate: write it as in "
            f'"{EXAMPLE}; weekends 10:30 to 16, 100 a day".'
        )
    number, unit = rates[0]["number"], rates[0]["unit"][0]
    if re.fullmatch(r"[1-9]\d{0,2}\.\d{3}", number):
        meant = f"{number.replace('.', '')} or {float(number):g}"
        raise InvalidInput(f"--pattern is {text!r}: write {meant} for {number}, which may be both.")
    hours = hours_of("--pattern", text, plain[: rates[0].start()] + "," + plain[rates[0].end() :])
    length, count = hours.end - hours.start, len(hours.days)
    rate = float(number.replace(",", "")) / (UNITS.get(unit) or length * (count if unit == "w" else 1))
    return rate * length * count, rate, hours


def hours_of(option: str, text: str, rest: str | None = None) -> Hours:
    """Return the days and hours that text says, or rest of it: nothing else may be in it. Raises InvalidInput."""
    rest, start, end = _plain(text if rest is None else rest), 0.0, DAY
    found = HOURS.search(rest)
    if found:
        start, end = _seconds(found[1], found[2]), _seconds(found[3], found[4])
        rest = rest[: found.start()] + "," + rest[found.end() :]
        if (found[2] in HALVES) != (found[4] in HALVES):
            raise InvalidInput(f"{option} is {text!r}: give both hours am or pm, or write them from 0 to 24.")
    if not start < end <= DAY:
        raise InvalidInput(
            f"{option} is {text!r}: use two hours from 0 to 24, the lower first (9 to 17 for 9 am to 5 pm); for a "
            "night, two parts."
        )
    days = DAY_NAME.sub(r"\1", re.sub(r"\b(?:from|between|on|at)\b", " ", rest))
    days = re.sub(r" *\b(?:to|through|until)\b *", "-", re.sub(r"\band\b", ",", days))
    days = re.sub(r"[ ,]*,[ ,]*", ",", " ".join(days.split())).strip(", ")
    try:
        names = weekdays_of(WORDS.get(days, days))
    except InvalidInput:
        raise InvalidInput(
            f"{option} is {text!r}, and {days!r} are no days: use weekdays, weekends, daily, mon-fri or mon,wed, then "
            'hours as "9 to 18".'
        ) from None
    return Hours(tuple(DAYS.index(name) for name in names), start, end)


def _seconds(time: str, half: str | None) -> float:
    """Return the seconds since midnight: more than a day for an hour that is none."""
    hour, minute = int(time.split(":")[0]), int(time.partition(":")[2] or 0)
    if half in HALVES:
        hour = hour % 12 + HALVES[half] if 1 <= hour <= 12 else 99
    return 3600.0 * hour + 60.0 * minute

"""When requests come: from a file of timestamps, from Baseten's metrics, or from a pattern in words."""

import bisect
import csv
import dataclasses
import datetime
import random
import re
import time
import zoneinfo
from pathlib import Path
from typing import Any

from fast_truss.errors import ClientError, InvalidInput
from fast_truss.schedule import DAYS, weekdays_of

DAY = 86400.0
WEEK = 7 * DAY
# More than this of a pattern teaches nothing more: one week has to do.
ENOUGH_REQUESTS = 250_000
MOST_REQUESTS = 2_000_000
METRIC = "baseten_inference_requests_total"
EXAMPLE = "weekdays 9 to 18, 40 an hour"
UNITS = {"minute": 60.0, "hour": 3600.0, "day": 0.0}
NUMBER = r"[0-9]{1,7}(?:\.[0-9]{1,3})?"
HOUR = r"(?:[01]?[0-9]|2[0-4])(?::[0-5][0-9])?"
PART = re.compile(
    rf"(?P<days>[a-z,\- ]*?) *(?:(?P<start>{HOUR}) *(?:to|-) *(?P<end>{HOUR}) *)?(?:, *|(?<![0-9:.]))"
    rf"(?P<number>{NUMBER}) *(?:an?|per|/) *(?P<unit>minute|hour|day)",
    re.ASCII,
)
SINCE_1970 = re.compile(r"[0-9]{9,13}(\.[0-9]+)?", re.ASCII)
WORDS = {"weekdays": "mon-fri", "weekends": "sat,sun", "every day": "daily"}


@dataclasses.dataclass(frozen=True)
class Hours:
    """A window on each of some days. days: 0 is Monday. start, end: seconds after midnight."""

    days: tuple[int, ...]
    start: float
    end: float

    @property
    def weekdays(self) -> str:
        """As `schedule --weekdays` takes it."""
        if len(self.days) == 7:
            return "daily"
        names = [DAYS[day].lower()[:3] for day in self.days]
        in_a_row = len(names) > 2 and self.days == tuple(range(self.days[0], self.days[-1] + 1))
        return f"{names[0]}-{names[-1]}" if in_a_row else ",".join(names)

    def __str__(self) -> str:
        return f"{self.weekdays} {clock(self.start)} to {clock(self.end)}"


@dataclasses.dataclass(frozen=True)
class Traffic:
    """arrivals: seconds since origin, in order. span: seconds that they stand for. zone: of the clock on the wall.

    hours: when most of it comes, if that was said; else busy_hours() finds it.
    """

    arrivals: list[float]
    span: float
    origin: datetime.datetime
    zone: datetime.tzinfo
    source: str
    hours: Hours | None = None

    def windows(self, hours: Hours) -> tuple[tuple[float, float], ...]:
        """Return (start, end) of hours on each of its days, in seconds since origin."""
        first = self.origin.astimezone(self.zone).date()
        found = []
        for number in range(-1, int(self.span / DAY) + 2):
            day = first + datetime.timedelta(days=number)
            if day.weekday() in hours.days:
                start, end = self._at(day, hours.start), self._at(day, hours.end)
                if end > 0 and start < self.span:
                    found.append((start, end))
        return tuple(found)

    def _at(self, day: datetime.date, seconds: float) -> float:
        midnight = datetime.datetime.combine(day, datetime.time(), self.zone)
        # Clocks may change in between: it is the clock on the wall that counts.
        return (midnight + datetime.timedelta(seconds=seconds)).timestamp() - self.origin.timestamp()


def clock(seconds: float) -> str:
    """Return the time of day. Baseten's schedules know no 24:00."""
    minutes = min(int(seconds / 60), 24 * 60 - 1)
    return f"{minutes // 60:02}:{minutes % 60:02}"


def hours_of(option: str, text: str) -> Hours:
    """Return what `weekdays 9 to 18` means. Raises InvalidInput."""
    found = PART.fullmatch(f"{_plain(text)}, 1 an hour")
    if not found or not found["start"]:
        raise InvalidInput(f'{option} is {text!r}: use days and hours, such as "weekdays 9 to 18".')
    return _hours(option, text, found)


def read_pattern(text: str, seed: int) -> Traffic:
    """Return four weeks of what text says, or one of very much, by chance (a Poisson process). Raises InvalidInput.

    text: days, hours and a rate, such as EXAMPLE; more parts after `;` add to it. Hours may be left out, and days, too.
    """
    parts = []
    for part in text.split(";"):
        found = PART.fullmatch(_plain(part))
        if not found:
            raise InvalidInput(f'--pattern is {text!r}: write it as in "{EXAMPLE}; weekends 10:30 to 16, 100 a day".')
        hours = _hours("--pattern", text, found)
        rate = float(found["number"]) / (UNITS[found["unit"]] or hours.end - hours.start)
        parts.append((hours, rate))
    weekly = sum(rate * (hours.end - hours.start) * len(hours.days) for hours, rate in parts)
    if not 0 < weekly <= MOST_REQUESTS:
        raise InvalidInput(
            f"--pattern is {text!r}, which makes {weekly:.0f} requests a week: use 1 to {MOST_REQUESTS}."
        )
    days = 28 if 4 * weekly <= ENOUGH_REQUESTS else 7
    chance = random.Random(seed)
    arrivals = []
    for hours, rate in parts:
        for day in range(days):
            if day % 7 not in hours.days or not rate:
                continue
            at, end = day * DAY + hours.start + chance.expovariate(rate), day * DAY + hours.end
            while at < end:
                arrivals.append(at)
                at += chance.expovariate(rate)
    if not arrivals:
        raise InvalidInput(f"--pattern is {text!r}: no request came in {days} days, use a higher rate.")
    arrivals.sort()
    # A Monday, in a zone without changes of the clock: a pattern has none.
    origin = datetime.datetime(2027, 1, 4, tzinfo=datetime.UTC)
    whole = max(parts, key=lambda part: part[1] * (part[0].end - part[0].start) * len(part[0].days))[0]
    is_always = whole.end - whole.start == DAY and len(whole.days) == 7
    source = f"{'four weeks' if days == 28 else 'one week'} of {text!r}"
    return Traffic(arrivals, days * DAY, origin, datetime.UTC, source, None if is_always else whole)


def read_requests(file: Path, zone: zoneinfo.ZoneInfo) -> Traffic:
    """Return what the timestamps in a CSV say: its first column that holds some. Raises InvalidInput.

    A timestamp is ISO 8601 (in zone, if it names none), or seconds or milliseconds since 1970.
    """
    moments: list[float] = []
    column = None
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            for row in reader:
                if column is None:
                    column = next((place for place, cell in enumerate(row) if _moment(cell, zone) is not None), None)
                moment = _moment(row[column], zone) if column is not None and column < len(row) else None
                if moment is not None:
                    moments.append(moment)
                elif any(cell.strip() for cell in row) and reader.line_num > 1:  # the first: names
                    raise InvalidInput(_no_timestamp(file, reader.line_num, ",".join(row)))
                if len(moments) > MOST_REQUESTS:
                    raise InvalidInput(f"--requests has more than {MOST_REQUESTS} lines: use fewer days.")
    except OSError as error:
        raise InvalidInput(f"--requests is {str(file)!r}: it cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error):
        raise InvalidInput(f"--requests is {str(file)!r}: it is no CSV, use one timestamp in each line.") from None
    if len(moments) < 2:
        raise InvalidInput(f"--requests is {str(file)!r}: use at least two timestamps, one in each line.")
    return _observed(sorted(moments), zone, str(file))


def from_metrics(client: Any, zone: zoneinfo.ZoneInfo, seed: int) -> Traffic:
    """Return the last seven days of an environment or a deployment, by Baseten's metrics. Raises ClientError.

    Baseten tells a rate for each step. Within a step the requests are put by chance.
    """
    from baseten.client import managementapi as sdk

    now = int(time.time() * 1000)
    start = now - int(WEEK * 1000)
    target = client.target
    window = {"mode": "SERIES", "start_epoch_millis": start, "end_epoch_millis": now, "metrics": [METRIC]}
    if target.environment:
        params: Any = sdk.GetModelsEnvironmentsMetricsParams(**window)
        names = {"model_id": target.model_id, "env_name": target.environment}
        found = client.ask_management("get_models_environments_metrics", params=params, **names)
    else:
        params = sdk.GetModelsDeploymentsMetricsParams(**window)
        names = {"model_id": target.model_id, "deployment_id": client.status().deployment_id}
        found = client.ask_management("get_models_deployments_metrics", params=params, **names)
    arrivals = spread(found, random.Random(seed))
    if len(arrivals) < 2:
        raise ClientError(f"Baseten counted {len(arrivals)} requests of {target} in seven days: give --pattern.")
    if len(arrivals) > MOST_REQUESTS:
        raise ClientError(f"Baseten counted {len(arrivals)} requests, and {MOST_REQUESTS} is the most: give --pattern.")
    origin = datetime.datetime.fromtimestamp(start / 1000, datetime.UTC)
    since = [max(0.0, moment - start / 1000) for moment in arrivals]
    return Traffic(since, (now - start) / 1000, origin, zone, f"the last seven days of {target}")


def spread(found: Any, chance: random.Random) -> list[float]:
    """Return when (seconds since 1970, in order) the requests came that the SDK's GetModelMetricsResponse counts."""
    places = [place for place, each in enumerate(found.metric_descriptors) if each.name == METRIC]
    if not places:
        raise ClientError(f"Baseten's metrics do not tell {METRIC} here: give --requests or --pattern.")
    is_rate = found.metric_descriptors[places[0]].unit_hint == "PER_SECOND"
    ends = [*(each.start_epoch_millis for each in found.metric_values[1:]), found.end_epoch_millis]
    arrivals = []
    for each, end in zip(found.metric_values, ends, strict=False):  # without values there is still an end
        seconds = (end - each.start_epoch_millis) / 1000
        counted = sum(value or 0.0 for value in each.values[places[0]]) * (seconds if is_rate else 1.0)
        # A half is one in every second step, and not none ever.
        count = int(counted + chance.random())
        arrivals += [each.start_epoch_millis / 1000 + chance.random() * seconds for _ in range(count)]
    return sorted(arrivals)


def busy_hours(traffic: Traffic) -> Hours | None:
    """Return the shortest window of whole hours that holds 90 percent of the requests of its days.

    Its days are those with at least half of what an average day brings. None: they come around the clock.
    """
    counts = [[0] * 24 for _ in DAYS]
    base = traffic.origin.timestamp()
    place = 0
    while place < len(traffic.arrivals):
        quarter = (base + traffic.arrivals[place]) // 900 * 900  # no zone is off by less than a quarter of an hour
        found = datetime.datetime.fromtimestamp(quarter, traffic.zone)
        end = bisect.bisect_left(traffic.arrivals, quarter + 900 - base, place + 1)
        counts[found.weekday()][found.hour] += end - place
        place = end
    days = [day for day in range(7) if sum(counts[day]) >= len(traffic.arrivals) / 14]
    by_hour = [sum(counts[day][hour] for day in days) for hour in range(24)]
    windows = [(end - start, start, end) for start in range(24) for end in range(start + 1, 25)]
    for length, start, end in sorted(windows):
        if sum(by_hour[start:end]) >= 0.9 * sum(by_hour):
            return Hours(tuple(days), start * 3600.0, end * 3600.0) if length < 20 else None
    return None


def _observed(moments: list[float], zone: zoneinfo.ZoneInfo, source: str) -> Traffic:
    """Traffic from the first moment on. From two days on it stands for whole days, below that for a gap more."""
    length = moments[-1] - moments[0]
    span = max(length * len(moments) / (len(moments) - 1), 60.0)
    if length >= 2 * DAY:
        span = max(span, -(-length // DAY) * DAY)
    origin = datetime.datetime.fromtimestamp(moments[0], datetime.UTC)
    return Traffic([moment - moments[0] for moment in moments], span, origin, zone, source)


def _moment(text: str, zone: zoneinfo.ZoneInfo) -> float | None:
    text = text.strip()
    if text[4:5] != "-" and SINCE_1970.fullmatch(text):
        return float(text) / (1000 if len(text.split(".")[0]) >= 12 else 1)
    try:
        moment = datetime.datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError):
        return None


def _no_timestamp(file: Path, line: int, text: str) -> str:
    shown = text if len(text) <= 60 else text[:60] + "..."
    return f"--requests: line {line} of {file.name} is {shown!r}: use a timestamp, such as 2027-03-31T08:45:00+02:00."


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _hours(option: str, text: str, found: re.Match[str]) -> Hours:
    days = found["days"].strip() or "daily"
    try:
        names = weekdays_of(WORDS.get(days, days.replace(" ", "")))
    except InvalidInput:
        raise InvalidInput(
            f"{option} is {text!r}, and {days!r} are no days: use weekdays, weekends, daily, mon-fri or mon,wed."
        ) from None
    start, end = (_seconds(found[name] or usual) for name, usual in (("start", "0"), ("end", "24")))
    if not start < end <= DAY:
        raise InvalidInput(
            f"{option} is {text!r}: use two hours from 0 to 24, the lower first; for a night, two parts."
        )
    return Hours(tuple(DAYS.index(name) for name in names), start, end)


def _seconds(text: str) -> float:
    hour, _, minute = text.partition(":")
    return 3600.0 * int(hour) + 60.0 * int(minute or 0)

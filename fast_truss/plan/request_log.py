"""Reads traffic from a CSV with the time of each request, and estimates the days that it covers."""

import csv
import dataclasses
import datetime
import math
import re
import zoneinfo
from pathlib import Path

from fast_truss.errors import InvalidInput
from fast_truss.plan.traffic import DAY, MOST_REQUESTS, Traffic

NAMES = ("timestamp", "time", "date", "datetime", "created_at")
# Requires a time: a date alone would put all requests at midnight. Not 0001-01-01, which some programs write for null.
ISO_8601 = re.compile(r"20\d\d-\d\d-\d\d[T ]\d\d.*", re.ASCII)
SINCE_1970 = re.compile(r"1\d{9}(?P<more>\d{3})?(?:\.\d+)?", re.ASCII)


def read_requests(file: Path, zone: zoneinfo.ZoneInfo, column: str | None = None, days: float | None = None) -> Traffic:
    """Return the traffic in a CSV. Raises InvalidInput.

    A timestamp is ISO 8601, in zone unless it names its own. In a single column, or the named one, it may also be
    seconds or milliseconds since 1970. days: days that the file covers, if known.
    """
    moments: list[float] = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            separator = max(",;\t", key=lines.readline().count)
            lines.seek(0)
            rows = csv.DictReader(lines, delimiter=separator, skipinitialspace=True)
            labels = list(rows.fieldnames or [""])
            name, numbers = _column(file, labels, column), column is not None or len(labels) == 1
            first = _moment(name, zone) if len(labels) == 1 else None
            moments += [] if first is None else [first]  # a single column needs no header
            for row in rows:
                cell = row[name] or ""
                # A row with more cells than the header may be shifted.
                moment = None if None in row else _moment(cell, zone, numbers)
                if moment is None:
                    raise InvalidInput(
                        f"--requests: line {rows.line_num} of {file.name} has the time {cell[:60]!r}: use one such as "
                        "2027-03-31T08:45:00+02:00, and as many cells as in the first line."
                    )
                moments.append(moment)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"--requests is {str(file)!r}: it cannot be read as CSV ({error}).") from None
    if not 2 <= len(moments) <= MOST_REQUESTS:
        raise InvalidInput(f"--requests is {str(file)!r}: use at least two timestamps, and at most {MOST_REQUESTS}.")
    return _traffic(sorted(moments), zone, file.name, days)


def _column(file: Path, labels: list[str], wanted: str | None) -> str:
    """Return the name of the column that holds the times. Raises InvalidInput."""
    fits = [label for label in labels if label == wanted]
    if wanted is None:
        fits = [label for label in labels if len(labels) == 1 or label.lower() in NAMES]
    if len(fits) == 1:
        return fits[0]
    raise InvalidInput(f"--requests: {file.name} has {', '.join(labels)}: set --column to the one with the times.")


def _moment(text: str, zone: datetime.tzinfo, numbers: bool = True) -> float | None:
    """Return seconds since 1970, or None if text is no time. numbers: whether it may be seconds or milliseconds."""
    text = text.strip()
    number = SINCE_1970.fullmatch(text)
    if number and numbers:
        return float(text) / (1000 if number["more"] else 1)
    try:
        moment = datetime.datetime.fromisoformat(text) if ISO_8601.fullmatch(text) else None
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp() if moment else None


def _traffic(moments: list[float], zone: datetime.tzinfo, source: str, days: float | None) -> Traffic:
    """Return the traffic since the first moment, rounded up to whole days if it has two or more.

    If no request came on a weekend, five working days count as a week. moments: seconds since 1970, in order. days:
    days that they cover, if known. Raises InvalidInput.
    """
    length, origin = moments[-1] - moments[0], datetime.datetime.fromtimestamp(moments[0], zone)
    span = math.ceil(length / DAY) * DAY if length >= 2 * DAY else length * len(moments) / (len(moments) - 1)
    found = Traffic([moment - moments[0] for moment in moments], span, origin, source)
    if days is not None and days * DAY < length:
        raise InvalidInput(f"--days is {days:g}, but the requests cover {length / DAY:.3g} days: use at least that.")
    if days is not None:
        return dataclasses.replace(found, span=days * DAY)
    working = sum((origin.weekday() + number) % 7 < 5 for number in range(math.ceil(length / DAY)))
    if working < 5 or any(day > 4 for day, _ in found.by_hour()):
        return found
    span = max(working / 5 * 7 * DAY, length)
    note = (
        f"No request came on a weekend: {working} working days count as {span / DAY:.3g} days. If the file leaves out "
        "weekends, set --days."
    )
    return dataclasses.replace(found, span=span, notes=(note,))

"""Reads traffic from a CSV with the time of each request, and finds the days that it stands for."""

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
# A date alone would put all requests at midnight, and some programs write 0001-01-01 for none.
ISO_8601 = re.compile(r"20\d\d-\d\d-\d\d[T ]\d\d.*", re.ASCII)
SINCE_1970 = re.compile(r"1\d{9}(?P<more>\d{3})?(?:\.\d+)?", re.ASCII)


def read_requests(file: Path, zone: zoneinfo.ZoneInfo, column: str | None = None, days: float | None = None) -> Traffic:
    """Return what the timestamps in a CSV say. Raises InvalidInput.

    A timestamp is ISO 8601 (in zone, if it names none); in the only column, or the one that column names, also seconds
    or milliseconds since 1970. days: what the file stands for, if that is known.
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
            moments += [] if first is None else [first]  # the only column needs no name
            for row in rows:
                cell = row[name] or ""
                # A row of more cells than names may be shifted.
                moment = None if None in row else _moment(cell, zone, numbers)
                if moment is None:
                    raise InvalidInput(
                        f"--requests: line {rows.line_num} of {file.name} has {cell[:60]!r} as its time: use "
                        "one such as 2027-03-31T08:45:00+02:00, and as many cells as in the first line."
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
    raise InvalidInput(f"--requests: {file.name} has {', '.join(labels)}: say with --column which one holds the times.")


def _moment(text: str, zone: datetime.tzinfo, numbers: bool = True) -> float | None:
    """Return the seconds since 1970, or None if it is no time. numbers: it may be such seconds, or milliseconds."""
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
    """Return the traffic from the first moment on, over whole days from two on, and over weeks if weekends are empty.

    moments: seconds since 1970, in order. days: what they stand for, if that is known. Raises InvalidInput.
    """
    length, origin = moments[-1] - moments[0], datetime.datetime.fromtimestamp(moments[0], zone)
    span = math.ceil(length / DAY) * DAY if length >= 2 * DAY else length * len(moments) / (len(moments) - 1)
    found = Traffic([moment - moments[0] for moment in moments], span, origin, source)
    if days is not None and days * DAY < length:
        raise InvalidInput(f"--days is {days:g}, and the requests cover {length / DAY:.3g} days: use as many.")
    if days is not None:
        return dataclasses.replace(found, span=days * DAY)
    working = sum((origin.weekday() + number) % 7 < 5 for number in range(math.ceil(length / DAY)))
    if working < 5 or any(day > 4 for day, _ in found.by_hour()):
        return found
    span = max(working / 5 * 7 * DAY, length)
    note = (
        f"No request came on a weekend: the {working} working days stand for {span / DAY:.3g} days. If the file "
        "leaves weekends out, say what it stands for with --days."
    )
    return dataclasses.replace(found, span=span, notes=(note,))

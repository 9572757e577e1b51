"""Reads traffic from a CSV with the time of each request: finds its column, and the days that it stands for."""

import csv
import dataclasses
import datetime
import itertools
import math
import re
import zoneinfo
from collections import Counter
from pathlib import Path

from fast_truss.errors import InvalidInput
from fast_truss.plan.traffic import DAY, MOST_REQUESTS, Traffic

KINDS = {
    "moment": re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d.*", re.ASCII),
    "since 1970": re.compile(r"(?:\d{10}|\d{13})(?:\.\d+)?", re.ASCII),
    "date": re.compile(r"\d{4}-\d\d-\d\d", re.ASCII),
    "clock": re.compile(r"\d\d:\d\d(?::\d\d(?:\.\d+)?)?", re.ASCII),
}
NAMES = {"time", "date", "timestamp", "datetime", "when", "at", "ts", "epoch", "created", "received", "requested"}
EXAMPLE = "such as 2027-03-31T08:45:00+02:00"
SAMPLE = 100


def read_requests(file: Path, zone: zoneinfo.ZoneInfo, column: str | None = None, days: float | None = None) -> Traffic:
    """Return what the timestamps in a CSV say. Raises InvalidInput.

    A timestamp is ISO 8601 (in zone, if it names none), or seconds or milliseconds since 1970. column: the name or the
    number of the column that holds them. days: what the file stands for, if that is known.
    """
    moments: list[float] = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            separator = max(",;\t", key=lines.readline().count)
            lines.seek(0)
            reader = csv.reader(lines, delimiter=separator)
            rows = ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
            sample = list(itertools.islice(rows, SAMPLE))
            names = sample.pop(0)[1] if sample and not any(map(_kind, sample[0][1])) else []
            places = _columns(file, names, [row for _, row in sample], column) if sample else []
            for line, row in itertools.chain(sample, rows):
                moment = _moment(" ".join(row[place] for place in places if place < len(row)), zone)
                if moment is None:
                    shown = repr(separator.join(row)[:60])
                    raise InvalidInput(f"--requests: line {line} of {file.name} is {shown}: use a time, {EXAMPLE}.")
                moments.append(moment)
    except OSError as error:
        raise InvalidInput(f"--requests is {str(file)!r}: it cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error):
        raise InvalidInput(f"--requests is {str(file)!r}: it is no CSV, use one timestamp in each line.") from None
    if not 2 <= len(moments) <= MOST_REQUESTS:
        raise InvalidInput(f"--requests is {str(file)!r}: use at least two timestamps, and at most {MOST_REQUESTS}.")
    return _traffic(sorted(moments), zone, file.name, days)


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
    if working < 5 or any(map(any, found.by_hour()[5:])):
        return found
    span = max(working / 5 * 7 * DAY, length)
    note = (
        f"No request came on a weekend: the {working} working days stand for {span / DAY:.3g} days. If the file "
        "leaves weekends out, say what it stands for with --days."
    )
    return dataclasses.replace(found, span=span, notes=(note,))


def _columns(file: Path, names: list[str], rows: list[list[str]], wanted: str | None) -> list[int]:
    """Return the column that holds the times, or two: of dates, and of times of day. Raises InvalidInput."""
    width = max(map(len, rows))
    labels = [name.strip() for name in names] + [str(number + 1) for number in range(len(names), width)]
    if wanted is not None and wanted not in labels:
        raise InvalidInput(f"--column is {wanted!r}, and {file.name} has {', '.join(labels)}: name one of them.")
    if wanted is not None or width == 1:
        return [labels.index(wanted) if wanted else 0]
    columns = itertools.zip_longest(*rows, fillvalue="")
    kinds = [Counter(map(_kind, column)).most_common(1)[0][0] for column in columns]
    named = [any(word.lower() in NAMES for word in re.findall("[A-Z]?[a-z]+", label)) for label in labels]
    dates, clocks = ([place for place in range(width) if kinds[place] == kind] for kind in ("date", "clock"))
    # A number of ten digits may be anything: its name must say that it is a time.
    fits = [place for place, kind in enumerate(kinds) if kind == "moment" or (kind == "since 1970" and named[place])]
    fits = [place for place in fits if named[place]] or fits
    if len(fits) == 1:
        return fits
    if not fits and len(dates) == len(clocks) == 1:
        return [*dates, *clocks]
    which = " and ".join(labels[place] for place in fits) + " hold times"
    which = which if fits else f"none of {', '.join(labels)} is clearly the time, {EXAMPLE}"
    raise InvalidInput(f"--requests is {file.name!r}, where {which}: say which column it is with --column NAME.")


def _kind(cell: str) -> str | None:
    return next((kind for kind, form in KINDS.items() if form.fullmatch(cell.strip())), None)


def _moment(text: str, zone: datetime.tzinfo) -> float | None:
    text, kind = text.strip(), _kind(text)
    if kind == "since 1970":
        return float(text) / (1000 if len(text.split(".")[0]) == 13 else 1)
    if kind != "moment":  # without a time of day every request would come at midnight
        return None
    try:
        moment = datetime.datetime.fromisoformat(text.replace(" UTC", "Z"))
    except ValueError:
        return None
    # Some programs write 0001-01-01 for none.
    known = 1970 < moment.year < 2300
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp() if known else None

"""Reads traffic from a CSV with the time of each request: finds its column, and the days that it stands for."""

import csv
import datetime
import itertools
import math
import re
import zoneinfo
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fast_truss.errors import InvalidInput
from fast_truss.plan.traffic import DAY, MOST_REQUESTS, Traffic

KINDS = {
    "moment": re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:?\d\d.*", re.ASCII),
    "since 1970": re.compile(r"(?:\d{10}|\d{13})(?:\.\d+)?", re.ASCII),
    "date": re.compile(r"\d{4}-\d\d-\d\d", re.ASCII),
    "clock": re.compile(r"\d\d:\d\d(?::\d\d(?:\.\d+)?)?", re.ASCII),
}
NAMES = {"time", "date", "timestamp", "datetime", "when", "at", "ts", "epoch", "created", "received", "requested"}
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
            names = sample.pop(0)[1] if sample and not any(map(_kind, sample[0][1])) else None
            places = _columns(file, names, [row for _, row in sample], column) if sample else []
            for line, row in itertools.chain(sample, rows):
                moment = _moment(" ".join(row[place] for place in places if place < len(row)), zone)
                if moment is None:
                    raise InvalidInput(_no_timestamp(file, line, separator.join(row)))
                moments.append(moment)
                if len(moments) > MOST_REQUESTS:
                    raise InvalidInput(f"--requests has more than {MOST_REQUESTS} lines: use fewer days.")
    except OSError as error:
        raise InvalidInput(f"--requests is {str(file)!r}: it cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error):
        raise InvalidInput(f"--requests is {str(file)!r}: it is no CSV, use one timestamp in each line.") from None
    if len(moments) < 2:
        raise InvalidInput(f"--requests is {str(file)!r}: use at least two timestamps, one in each line.")
    return observed(sorted(moments), zone, file.name, days)


def observed(moments: list[float], zone: datetime.tzinfo, source: str, days: float | None = None) -> Traffic:
    """Return the traffic from the first moment on, over whole days from two on, and over weeks if weekends are empty.

    moments: seconds since 1970, in order. days: what they stand for, if that is known. Raises InvalidInput.
    """
    length, notes = moments[-1] - moments[0], []
    quarters = {moment // 900 * 900 for moment in moments}  # no zone is off by less than a quarter of an hour
    seen = {datetime.datetime.fromtimestamp(quarter, zone).weekday() for quarter in quarters}
    first = datetime.datetime.fromtimestamp(moments[0], zone).weekday()
    working = sum((first + number) % 7 < 5 for number in range(math.ceil(length / DAY)))
    if days is not None:
        span = days * DAY
        if span < length:
            raise InvalidInput(f"--days is {days:g}, and the requests cover {length / DAY:.3g} days: use as many.")
    elif working >= 5 and not seen & {5, 6}:
        span = max(working / 5 * 7 * DAY, length)
        notes = [
            f"No request came on a weekend: the {working} working days stand for {span / DAY:.3g} days. If the file "
            "leaves weekends out, say what it stands for with --days."
        ]
    elif length >= 2 * DAY:
        span = math.ceil(length / DAY) * DAY
    else:
        span = max(length * len(moments) / (len(moments) - 1), 60.0)
    origin = datetime.datetime.fromtimestamp(moments[0], datetime.UTC)
    return Traffic([moment - moments[0] for moment in moments], span, origin, zone, source, notes=tuple(notes))


def _columns(file: Path, names: list[str] | None, rows: Sequence[list[str]], wanted: str | None) -> list[int]:
    """Return the column that holds the times, or two: of dates, and of times of day. Raises InvalidInput."""
    width = max(map(len, rows))
    labels = [name.strip() for name in names or []] + [str(number + 1) for number in range(len(names or []), width)]
    listed = ", ".join(labels)
    if wanted is not None:
        if wanted not in labels:
            raise InvalidInput(f"--column is {wanted!r}, and {file.name} has {listed}: name one of them.")
        return [labels.index(wanted)]
    if width == 1:
        return [0]
    kinds = [_usual([_kind(row[place]) for row in rows if place < len(row)]) for place in range(width)]
    named = [place for place, label in enumerate(labels[:width]) if _words(label) & NAMES]
    # A number of ten digits may be anything: its name must say that it is a time.
    fits = [
        place for place in range(width) if kinds[place] == "moment" or (kinds[place] == "since 1970" and place in named)
    ]
    dates, clocks = ([place for place in range(width) if kinds[place] == kind] for kind in ("date", "clock"))
    if not fits and len(dates) == len(clocks) == 1:
        return [*dates, *clocks]
    best = fits if len(fits) == 1 else [place for place in fits if place in named]
    if len(best) == 1:
        return best
    if fits:
        both = " and ".join(labels[place] for place in best or fits)
        raise InvalidInput(f"--requests is {file.name!r}, where {both} hold times: say which with --column NAME.")
    raise InvalidInput(
        f"--requests is {file.name!r}, and none of its columns {listed} is clearly the time: use one such as "
        "2027-03-31T08:45:00+02:00, or say which with --column NAME."
    )


def _usual(kinds: list[str | None]) -> str | None:
    return Counter(kinds).most_common(1)[0][0] if kinds else None


def _words(label: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", label).lower()))


def _kind(cell: str) -> str | None:
    return next((kind for kind, form in KINDS.items() if form.fullmatch(cell.strip())), None)


def _moment(text: str, zone: datetime.tzinfo) -> float | None:
    text = text.strip()
    if text[4:5] != "-":
        known = KINDS["since 1970"].fullmatch(text)
        return float(text) / (1000 if len(text.split(".")[0]) == 13 else 1) if known else None
    try:
        # Without a time of day every request would come at midnight.
        moment = datetime.datetime.fromisoformat(text.removesuffix(" UTC") + "Z" * text.endswith(" UTC"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp() if len(text) > 10 else None
    except (ValueError, OverflowError):
        return None


def _no_timestamp(file: Path, line: int, text: str) -> str:
    shown = text if len(text) <= 60 else text[:60] + "..."
    return f"--requests: line {line} of {file.name} is {shown!r}: use a timestamp, such as 2027-03-31T08:45:00+02:00."

"""The command `fast-truss plan`: its options, and what it asks Baseten before it simulates."""

import json
import time
import zoneinfo
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss.errors import ClientError, InvalidInput
from fast_truss.options import AsJson, Where, on_target

EXAMPLE = "weekdays 9 to 18, 40 an hour"
PATIENCE = 10.0  # without --p95, 95 of 100 may wait so many seconds longer than an image takes
STARTUP_DAYS = 30
# Of a startup, what comes before the container: it is not paid for.
UNBILLED = ("SCHEDULING", "IMAGE_PULL", "WEIGHT_DOWNLOAD")


def _from(low: float, high: float, words: str) -> Any:
    def checked(value: float | None) -> float | None:
        if value is not None and not low <= value <= high:  # typer's own bounds let NaN pass
            raise typer.BadParameter(f"{value:g} is not from {low:g} to {high:g}.")
        return value

    return typer.Option(help=words, callback=checked)


@on_target
def plan(
    where: Where,
    image_seconds: Annotated[float, _from(0.001, 1200, "Of one request on a warm replica: p50 of `fast-truss load`.")],
    requests: Annotated[Path | None, typer.Option(help="A CSV with the time of each request.")] = None,
    column: Annotated[str | None, typer.Option(help="The name of its column with the time.")] = None,
    days: Annotated[float | None, _from(0.1, 3660, "Days that the CSV stands for. Else as it looks.")] = None,
    pattern: Annotated[str | None, typer.Option(help=f'Such as "{EXAMPLE}".')] = None,
    cold_start: Annotated[float | None, _from(0, 7200, "Seconds. Else the median that Baseten recorded.")] = None,
    price: Annotated[float | None, _from(0, 1000, "USD an hour of one replica. Else Baseten's list price.")] = None,
    p95: Annotated[float | None, _from(0, 86400, "Goal: seconds that 95 of 100 may wait. Else an image + 10.")] = None,
    typing: Annotated[float, _from(0, 3600, "Median seconds from opening the app to the request.")] = 20.0,
    timezone: Annotated[str, typer.Option(help="Of the hours of a schedule, such as Europe/Berlin.")] = "UTC",
    max_replica: Annotated[int | None, typer.Option(min=1, max=20, help="Else as the busiest hour needs.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Find the settings that fit your traffic: what users would wait, and what a month would cost. Changes nothing.

    Example: fast-truss plan --pattern "weekdays 9 to 18, 40 an hour" --cold-start 30 --image-seconds 4 --price 0.85
    """
    from fast_truss.console import console
    from fast_truss.load import price_per_minute
    from fast_truss.plan import choices, report, request_log, traffic
    from fast_truss.plan.pattern import read_pattern
    from fast_truss.plan.simulation import Machine

    for option, value in (("--cold-start", cold_start), ("--price", price)):
        if value is None and (not where.model or where.url):
            raise InvalidInput(f"{option} is missing: give it, or --model, of which Baseten tells it.")
    if timezone not in zoneinfo.available_timezones():  # ZoneInfo() takes other files, too
        raise InvalidInput(f"--timezone is {timezone!r}: use an IANA name, such as Europe/Berlin.")
    if pattern is not None and (requests, column, days) == (None, None, None):
        found = read_pattern(pattern, seed)
    elif requests is not None and pattern is None:
        found = request_log.read_requests(requests, zoneinfo.ZoneInfo(timezone), column, days)
    else:
        raise InvalidInput(f'Give --pattern "{EXAMPLE}", or --requests FILE, of which --column and --days are.')
    found.warnings()  # too little is refused before anything is asked
    notes, unbilled = [], 0.0
    if cold_start is None:
        cold_start, unbilled = _usual_start(where.client())
        notes.append(f"The cold start is the median of the startups that Baseten recorded in {STARTUP_DAYS} days.")
    if price is None:
        listed = price_per_minute(where.client())
        if listed is None:
            raise ClientError("Baseten does not tell the price of this instance type: give --price, in USD an hour.")
        price = round(listed * 60, 4)
        notes.append("The price is Baseten's list price of the instance type.")
    machine = Machine(cold_start, image_seconds, unbilled)
    case = choices.Case(found, machine, price, image_seconds + PATIENCE if p95 is None else p95, typing, seed)
    may_schedule = not where.model or where.target.environment is not None  # only an environment has schedules
    window = (found.hours or traffic.busy_hours(found)) if may_schedule else None
    most = max_replica or choices.enough_replicas(found, image_seconds)
    tried = choices.choices_for(found, machine, most, window)
    with console().status(f"simulating {len(found.arrivals)} requests under {len(tried)} settings"):
        rows = choices.rows_of(tried, case)
        best = choices.recommended(rows, case.goal)
    target = where.target.arguments() if where.model else []
    answer = report.answer(case, rows, best, notes, target, timezone)
    if as_json:
        print(json.dumps(answer))
    else:
        report.show(answer)


def _usual_start(client: Any) -> tuple[float, float]:
    """Return the seconds of a usual startup, and those of them before its container. Raises ClientError."""
    now = int(time.time() * 1000)
    summary = client.startups_summary(start_epoch_millis=now - STARTUP_DAYS * 86_400_000, end_epoch_millis=now)
    if summary is None or summary.total_duration_ms.p50_ms is None:
        raise ClientError(f"Baseten recorded no startup of the last {STARTUP_DAYS} days: give --cold-start.")
    total = summary.total_duration_ms.p50_ms / 1000
    phases = [each.duration_ms.p50_ms or 0 for each in summary.phase_duration_ms if each.phase in UNBILLED]
    return total, min(total, sum(phases) / 1000)

"""The command `fast-truss plan`: its options, and the facts that it reads from Baseten."""

import json
import time
import zoneinfo
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss.errors import ClientError, InvalidInput
from fast_truss.options import AsJson, Where, on_target

EXAMPLE = "weekdays 9 to 18, 40 an hour"
PATIENCE = 10.0  # default of --p95, in seconds on top of an image
STARTUP_DAYS = 30
# Phases of a startup before the container, which are not billed.
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
    image_seconds: Annotated[float, _from(0.001, 1200, "Seconds of a warm request: p50 of `fast-truss load`.")],
    requests: Annotated[Path | None, typer.Option(help="CSV with the time of each request.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the CSV with the time.")] = None,
    days: Annotated[float | None, _from(0.1, 3660, "Days that the CSV covers. Default: estimated from it.")] = None,
    pattern: Annotated[str | None, typer.Option(help=f'Traffic in words, such as "{EXAMPLE}".')] = None,
    cold_start: Annotated[float | None, _from(0, 7200, "Seconds. Default: the median that Baseten recorded.")] = None,
    price: Annotated[float | None, _from(0, 1000, "USD per hour. Default: Baseten's list price.")] = None,
    p95: Annotated[float | None, _from(0, 86400, "Goal: seconds that 95% may wait. Default: an image + 10.")] = None,
    typing: Annotated[float, _from(0, 3600, "Median seconds from opening the app to the request.")] = 20.0,
    timezone: Annotated[str, typer.Option(help="Time zone of schedules and CSV, such as Europe/Berlin.")] = "UTC",
    max_replica: Annotated[int | None, typer.Option(min=1, max=20, help="Default: as the busiest hour needs.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulated traffic.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Find the autoscaling settings that fit your traffic: how long users wait, what a month costs. Changes nothing.

    Example: fast-truss plan --pattern "weekdays 9 to 18, 40 an hour" --cold-start 30 --image-seconds 4 --price 0.85
    """
    from fast_truss.console import console
    from fast_truss.load import price_per_minute
    from fast_truss.plan import choices, report, request_log, traffic
    from fast_truss.plan.pattern import read_pattern
    from fast_truss.plan.simulation import Machine

    for option, value in (("--cold-start", cold_start), ("--price", price)):
        if value is None and (not where.model or where.url):
            raise InvalidInput(f"{option} is missing: set it, or set --model to read it from Baseten.")
    if timezone not in zoneinfo.available_timezones():  # ZoneInfo() also opens other files
        raise InvalidInput(f"--timezone is {timezone!r}: use an IANA name, such as Europe/Berlin.")
    if pattern is not None and (requests, column, days) == (None, None, None):
        found = read_pattern(pattern, seed)
    elif requests is not None and pattern is None:
        found = request_log.read_requests(requests, zoneinfo.ZoneInfo(timezone), column, days)
    else:
        raise InvalidInput(f'Use either --pattern "{EXAMPLE}", or --requests FILE with --column and --days.')
    found.warnings()  # refuse too little traffic before asking Baseten
    notes, unbilled = [], 0.0
    if cold_start is None:
        cold_start, unbilled = _usual_start(where.client())
        notes.append(f"The cold start is the median of the startups that Baseten recorded in {STARTUP_DAYS} days.")
    if price is None:
        listed = price_per_minute(where.client())
        if listed is None:
            raise ClientError("Baseten lists no price for this instance type: set --price in USD per hour.")
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
        return print(json.dumps(answer))
    report.show(answer)


def _usual_start(client: Any) -> tuple[float, float]:
    """Return the median seconds of a startup, and how many of them are unbilled. Raises ClientError."""
    now = int(time.time() * 1000)
    summary = client.startups_summary(start_epoch_millis=now - STARTUP_DAYS * 86_400_000, end_epoch_millis=now)
    if summary is None or summary.total_duration_ms.p50_ms is None:
        raise ClientError(f"Baseten recorded no startup in the last {STARTUP_DAYS} days: set --cold-start.")
    total = summary.total_duration_ms.p50_ms / 1000
    phases = [each.duration_ms.p50_ms or 0 for each in summary.phase_duration_ms if each.phase in UNBILLED]
    return total, min(total, sum(phases) / 1000)

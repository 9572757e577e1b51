"""The command `fast-truss plan`: its options, and what it asks Baseten and the model before it simulates."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss.errors import InvalidInput
from fast_truss.options import Where, on_target

EXAMPLE = "weekdays 9 to 18, 40 an hour"
# How much longer than an image takes 95 of 100 may wait, if --p95 is not given.
PATIENCE = 10.0
PROMPT = "a lighthouse on a cliff at dawn"


def _from(low: float, high: float, words: str) -> Any:
    def checked(value: float | None) -> float | None:
        if value is not None and not low <= value <= high:
            raise typer.BadParameter(f"{value:g} is not from {low:g} to {high:g}.")
        return value

    return typer.Option(help=words, callback=checked)


@on_target
def plan(
    where: Where,
    requests: Annotated[Path | None, typer.Option(help="A CSV with the time of each request.")] = None,
    column: Annotated[str | None, typer.Option(help="Its column with the time, by name or number.")] = None,
    days: Annotated[float | None, _from(0.1, 3660, "Days that the CSV stands for. Else as it looks.")] = None,
    from_metrics: Annotated[bool, typer.Option("--from-metrics", help="What Baseten counted in seven days.")] = False,
    pattern: Annotated[str | None, typer.Option(help=f'Such as "{EXAMPLE}".')] = None,
    cold_start: Annotated[float | None, _from(0, 7200, "Seconds. Else the median that Baseten recorded.")] = None,
    image_seconds: Annotated[float | None, _from(0.001, 1200, "Of one request on a warm replica.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Make four images to find that out.")] = False,
    price: Annotated[float | None, _from(0, 1000, "USD an hour of one replica. Else Baseten's list price.")] = None,
    p95: Annotated[
        float | None, _from(0, 86400, "The goal: seconds that 95 of 100 users may wait. Else 10 more than an image.")
    ] = None,
    typing: Annotated[float, _from(0, 3600, "Median seconds from opening the app to the request.")] = 20.0,
    hours: Annotated[
        str | None, typer.Option(help='Of a schedule, such as "mon-fri 8:30 to 18". Else as the traffic is.')
    ] = None,
    timezone: Annotated[str, typer.Option(help="Of these hours, such as Europe/Berlin.")] = "UTC",
    max_replica: Annotated[int | None, typer.Option(min=1, max=20, help="Else as the busiest hour needs.")] = None,
    concurrency_target: Annotated[int, typer.Option(min=1, max=1000, help="Requests at once for one replica.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.")] = 0,
    png: Annotated[Path | None, typer.Option(help="Also draw cost against wait into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the settings that fit your traffic: what users would wait, and what a month would cost. Changes nothing.

    Example: fast-truss plan --pattern "weekdays 9 to 18, 40 an hour" --cold-start 30 --image-seconds 4 --price 0.85
    """
    from fast_truss.console import console
    from fast_truss.plan import chart, choices, recorded, report, request_log, simulation, traffic
    from fast_truss.plan import pattern as words
    from fast_truss.schedule import zone_of

    if png:
        chart.check(png)
    if (requests is not None) + from_metrics + (pattern is not None) != 1:
        raise InvalidInput(f'Give one of --requests FILE, --from-metrics and --pattern "{EXAMPLE}".')
    if requests is None and (column, days) != (None, None):
        raise InvalidInput("--column and --days are of a CSV: give --requests.")
    may_schedule = not where.model or where.target.environment is not None  # only an environment has schedules
    if hours and not may_schedule:
        raise InvalidInput(f"--hours is of a schedule, and {where.target} has none: give --environment.")
    if measure == (image_seconds is not None):
        raise InvalidInput("Give one of --image-seconds, such as p50 of `fast-truss load`, and --measure.")
    for option, value in (("--cold-start", cold_start), ("--price", price)):
        if value is None and (not where.model or where.url):
            raise InvalidInput(f"{option} is missing: give it, or --model, of which Baseten tells it.")
    zone, window = zone_of(timezone), words.hours_of("--hours", hours) if hours else None
    if pattern is not None:
        found = words.read_pattern(pattern, seed)
    elif requests is not None:
        found = request_log.read_requests(requests, zone, column, days)
    else:
        found = recorded.requests(where.client(), zone, seed)
    found.warnings()  # too little is refused before anything is measured
    notes, unbilled = [], 0.0
    if cold_start is None:
        cold_start, unbilled, sentence = recorded.usual_start(where.client())
        notes.append(sentence)
    if image_seconds is None:
        image_seconds = _measured_image(where)
        notes.append("The seconds of an image are the median of three that were made just now.")
    if price is None:
        price = recorded.list_price(where.client())
        notes.append("The price is Baseten's list price of the instance type.")
    machine = simulation.Machine(cold_start, image_seconds, unbilled)
    case = choices.Case(found, machine, price, image_seconds + PATIENCE if p95 is None else p95, typing, seed)
    window = (window or found.hours or traffic.busy_hours(found)) if may_schedule else None
    most = max_replica or choices.enough_replicas(found, image_seconds)
    tried = choices.choices_for(found, machine, most, concurrency_target, window)
    with console().status(f"simulating {len(found.arrivals)} requests under {len(tried)} settings"):
        rows = choices.rows_of(tried, case)
        best = choices.recommended(rows, case.goal)
        draws = choices.by_chance(rows, best, case)
    target = where.target.arguments() if where.model else []
    answer = report.answer(case, rows, best, draws, notes, target, timezone)
    if as_json:
        print(json.dumps(answer))
    else:
        why = "--p95" if p95 is not None else f"{PATIENCE:g} s more than an image takes, set another with --p95"
        report.show(answer, f"Goal: 95 of 100 users wait at most {case.goal:g} s ({why}).")
    if png:
        chart.save(rows, best, case.goal, f"{len(found.arrivals)} requests, {found.source}"[:90], png)
        console().print(f"Chart: {png}", markup=False)


def _measured_image(where: Where) -> float:
    import statistics
    import time

    from fast_truss.console import console

    def timed() -> float:
        started = time.monotonic()
        client.generate(PROMPT, timeout=where.timeout)
        return time.monotonic() - started

    with where.client() as client, console().status("making four images: a cold start may come first"):
        timed()
        return max(0.001, round(statistics.median(timed() for _ in range(3)), 3))

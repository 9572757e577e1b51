"""Which settings fit one's traffic: simulates what users would wait and what a month would cost under many."""

import bisect
import dataclasses
import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fast_truss.errors import ClientError, InvalidInput
from fast_truss.options import Where
from fast_truss.plan import traffic as traffics
from fast_truss.plan.simulation import ASSUMPTIONS, Machine, Settings, pauses_of, simulate
from fast_truss.plan.traffic import Hours, Traffic
from fast_truss.schedule import zone_of

DELAYS = (60, 300, 900, 1800, 3600)
MONTH = 365.25 / 12 * 86400
# Of the natural logarithm of the seconds that a visitor types.
TYPING_SIGMA = 0.6
# How much longer than an image takes 95 of 100 may wait, if nothing else is said.
PATIENCE = 10.0
MOST_REPLICAS = 10
# Of a startup, what comes before the container: it is not paid for.
UNBILLED = ("SCHEDULING", "IMAGE_PULL", "WEIGHT_DOWNLOAD")
RECORD_DAYS = 30
PROMPT = "a lighthouse on a cliff at dawn"
# From so many requests times settings on it takes all processors.
PARALLEL = 2_000_000


@dataclasses.dataclass(frozen=True)
class Asked:
    """The options of the command. None: not given."""

    requests: Path | None
    from_metrics: bool
    pattern: str | None
    cold_start: float | None
    image_seconds: float | None
    measure: bool
    price: float | None
    p95: float | None
    typing: float
    hours: str | None
    timezone: str
    max_replica: int | None
    concurrency_target: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """Settings, in words, and what the command line sets. window: of the schedule, with the time to start before it."""

    name: str
    settings: Settings
    window: Hours | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """What comes of a choice. mean, p50, p95, p99: seconds from the press of the button until the image is there.

    usd, cold_starts: of a month. front: no other choice is better in one of usd and p95 and as good in the other.
    """

    name: str
    usd: float
    mean: float
    p50: float
    p95: float
    p99: float
    cold_starts: float
    choice: Choice
    front: bool = False


def run(where: Where, asked: Asked, png: Path | None, as_json: bool) -> None:
    """Carry out the command. Raises InvalidInput before anything is asked or simulated."""
    from fast_truss.console import console

    if png:
        from fast_truss.waterfall import check_png

        check_png(png)
    _check(where, asked)
    zone = zone_of(asked.timezone)
    target = where.target.arguments() if where.model else []
    hours = traffics.hours_of("--hours", asked.hours) if asked.hours else None
    found = _traffic(where, asked, zone)
    machine, price, told = _facts(where, asked)
    limit = asked.p95 if asked.p95 is not None else machine.image + PATIENCE
    most = asked.max_replica or enough_replicas(found, machine.image)
    # Only an environment has schedules.
    hours = (hours or found.hours or traffics.busy_hours(found)) if _may_schedule(where) else None
    choices = choices_for(found, machine, most, asked.concurrency_target, hours)
    with console().status(f"simulating {len(found.arrivals)} requests under {len(choices)} settings"):
        rows = rows_of(choices, found, machine, price, opened(found.arrivals, asked.typing, asked.seed))
    best = recommended(rows, limit)
    command = command_line(best.choice, target, asked.timezone)
    assumptions = [*told, *assumed(asked, found, machine, price), *ASSUMPTIONS]
    if as_json:
        print(json.dumps(_as_json(found, machine, price, rows, best, limit, command, assumptions)))
    else:
        _show(found, rows, best, limit, command, assumptions)
    if png:
        from fast_truss.plan.scatter import save

        save(rows, best, f"{len(found.arrivals)} requests, {found.source}"[:90], png)
        console().print(f"Chart: {png}")


def choices_for(
    found: Traffic, machine: Machine, most: int, concurrency_target: int, hours: Hours | None
) -> list[Choice]:
    """Return the settings to try. most: replicas at most. hours: those of a schedule, if there is one."""
    common: dict[str, Any] = {"concurrency_target": concurrency_target}
    choices = [
        Choice(f"always on, {_replicas(count)}", Settings(count, count, **common)) for count in range(1, most + 1)
    ]
    more = f", {most} at most" if most > 1 else ""
    # The replica is to be there when the first user is.
    early = 300.0 * math.ceil(machine.cold_start / 300)
    window = Hours(hours.days, max(hours.start - early, 0.0), hours.end) if hours else None
    windows = found.windows(window) if window else ()
    for delay in DELAYS:
        base = Settings(0, most, delay, **common)
        if most > 1:
            settings = dataclasses.replace(base, min_replica=1)
            choices.append(Choice(f"always 1{more}, delay {delay} s", settings))
        for wakes in (False, True):
            settings = dataclasses.replace(base, wakes=wakes)
            by_app = ", woken by the app" if wakes else ""
            choices.append(Choice(f"to zero after {delay} s{more}{by_app}", settings))
            for count in sorted({1, most} if window and not wakes else {1} if window else set()):
                on = dataclasses.replace(settings, windows=windows, window_replicas=count)
                words = f"{_replicas(count)} {window}{more}, else to zero after {delay} s{by_app}"
                choices.append(Choice(words, on, window))
    return choices


def enough_replicas(found: Traffic, image: float) -> int:
    """Return how many replicas the busiest hour keeps busy for 70 percent of it: from 1 to MOST_REPLICAS."""
    hours = [bisect.bisect_left(found.arrivals, hour * 3600.0) for hour in range(int(found.span / 3600) + 2)]
    busiest = max(after - before for before, after in itertools.pairwise(hours))
    return min(max(math.ceil(busiest * image / min(3600.0, found.span) / 0.7), 1), MOST_REPLICAS)


def opened(arrivals: Sequence[float], typing: float, seed: int) -> list[float]:
    """Return when the visitors opened the app, in order: they typed for a log-normal time with the median typing."""
    # One of a thousand times that are as likely as each other: drawn much faster than from the distribution itself.
    normal = statistics.NormalDist(0.0, TYPING_SIGMA)
    times = [typing * math.exp(normal.inv_cdf((number + 0.5) / 1000)) for number in range(1000)]
    typed = random.Random(seed).choices(times, k=len(arrivals))
    return sorted(at - seconds if at > seconds else 0.0 for at, seconds in zip(arrivals, typed, strict=True))


def rows_of(
    choices: list[Choice], found: Traffic, machine: Machine, price: float, opened_at: Sequence[float]
) -> list[Row]:
    """Simulate each choice. Returns the rows, the cheapest first. price: USD an hour of one replica."""
    every = [choice.settings for choice in choices]
    traffic = (found.arrivals, found.span, machine, opened_at)
    if len(every) * len(found.arrivals) < PARALLEL:
        _remember(*traffic)
        outcomes = list(map(_outcome, every))
    else:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        # Not forked: rich shows its progress in a thread.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(mp_context=context, initializer=_remember, initargs=traffic) as pool:
            outcomes = list(pool.map(_outcome, every))
    months = MONTH / found.span
    rows = [
        Row(choice.name, billed / 3600 * price * months, *waits, cold_starts * months, choice)
        for choice, (waits, cold_starts, billed) in zip(choices, outcomes, strict=True)
    ]
    rows.sort(key=lambda row: (row.usd, row.p95))
    # As they are shown: a hundredth of a second more is no reason to pay.
    front = pareto_front([(round(row.usd, 2), round(row.p95, 1)) for row in rows])
    return [dataclasses.replace(row, front=place in front) for place, row in enumerate(rows)]


_TRAFFIC: list[Any] = []


def _remember(arrivals: Sequence[float], *traffic: Any) -> None:
    _TRAFFIC[:] = [arrivals, *traffic, pauses_of(arrivals, min(DELAYS))]


def _outcome(settings: Settings) -> tuple[tuple[float, float, float, float], int, float]:
    arrivals, span, machine, opened_at, pauses = _TRAFFIC
    outcome = simulate(arrivals, span, settings, machine, opened_at, pauses)
    delays = (outcome.mean(), *outcome.percentiles(50, 95, 99))
    mean, p50, p95, p99 = (delay + machine.image for delay in delays)
    return (mean, p50, p95, p99), outcome.cold_starts, outcome.billed


def pareto_front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Return the places of the points that no other beats: not worse in both numbers, and better in one.

    Of equal points the first counts.
    """
    front, best = set(), math.inf
    for place in sorted(range(len(points)), key=lambda place: (points[place], place)):
        if points[place][1] < best:
            best = points[place][1]
            front.add(place)
    return front


def recommended(rows: list[Row], limit: float) -> Row:
    """Return the cheapest row that keeps p95 within limit, in seconds; if none does, the one with the least p95.

    rows: the cheapest first.
    """
    least = [row for row in rows if row.front][-1]
    return next((row for row in rows if row.p95 <= limit), least)


def command_line(choice: Choice, target: list[str], timezone: str) -> str:
    """Return the command that sets the choice; with a schedule, two that follow each other."""
    settings = choice.settings
    values = {
        "min-replica": settings.min_replica,
        "max-replica": settings.max_replica,
        "scale-down-delay": int(settings.scale_down_delay),
        "concurrency-target": settings.concurrency_target,
    }
    commands = [["autoscaling", *target, *_options(values)]]
    if choice.window:
        window = {
            "weekdays": choice.window.weekdays,
            "from": traffics.clock(choice.window.start),
            "to": traffics.clock(choice.window.end),
            "timezone": timezone,
            "min-replica": settings.window_replicas,
            "max-replica": settings.max_replica,
        }
        commands.append(["schedule", *target, *_options(window)])
    return " && ".join(" ".join(["fast-truss", *command]) for command in commands)


def assumed(asked: Asked, found: Traffic, machine: Machine, price: float) -> list[str]:
    """Return what was put into the simulation, in sentences."""
    low, high = (asked.typing * math.exp(sign * 0.6745 * TYPING_SIGMA) for sign in (-1, 1))
    return [
        f"Traffic: {found.source}, {len(found.arrivals)} requests in {found.span / 86400:.3g} days. A month is alike.",
        f"A cold start takes {machine.cold_start:g} s, {machine.cold_start - machine.unbilled:g} s of it paid for. An "
        f"image takes {machine.image:g} s. A replica costs USD {price:g} an hour.",
        f"Each request is of a visitor who opened the app before and typed for {asked.typing:g} s (the median; half of "
        f"them {low:.0f} to {high:.0f} s: log-normal). Who opens it and asks for nothing is not counted.",
        f"The clock is that of {asked.timezone}; seed {asked.seed}.",
    ]


def _check(where: Where, asked: Asked) -> None:
    """Raise InvalidInput for what is missing or out of bounds."""
    given = (asked.requests is not None) + asked.from_metrics + (asked.pattern is not None)
    if given != 1:
        raise InvalidInput(
            f'Give one of --requests FILE, --from-metrics and --pattern "{traffics.EXAMPLE}": when do requests come?'
        )
    if asked.hours and not _may_schedule(where):
        raise InvalidInput(f"--hours is of a schedule, and {where.target} has none: give --environment.")
    if asked.measure and asked.image_seconds is not None:
        raise InvalidInput("--measure and --image-seconds exclude each other: give one of them.")
    bounds = (
        ("--cold-start", asked.cold_start, 0, 7200),
        ("--image-seconds", asked.image_seconds, 0.001, 1200),
        ("--price", asked.price, 0, 1000),
        ("--p95", asked.p95, 0, 86400),
        ("--typing", asked.typing, 0, 3600),
    )
    for option, value, low, high in bounds:
        if value is not None and not low <= value <= high:
            raise InvalidInput(f"{option} is {value:g}: use a number from {low:g} to {high:g}.")
    on_baseten = bool(where.model) and where.url is None
    if asked.cold_start is None and not on_baseten:
        raise InvalidInput(
            "--cold-start is missing: give the seconds that `fast-truss coldstart` showed, or --model: Baseten "
            "records its startups."
        )
    if asked.image_seconds is None and not asked.measure:
        raise InvalidInput("--image-seconds is missing: give p50 of `fast-truss load`, or --measure to find it out.")
    if asked.price is None and not on_baseten:
        raise InvalidInput("--price is missing: give USD an hour of the instance type, or --model: Baseten tells it.")


def _may_schedule(where: Where) -> bool:
    return not where.model or where.target.environment is not None


def _traffic(where: Where, asked: Asked, zone: Any) -> Traffic:
    if asked.pattern is not None:
        return traffics.read_pattern(asked.pattern, asked.seed)
    if asked.requests is not None:
        return traffics.read_requests(asked.requests, zone)
    with where.client() as client:
        return traffics.from_metrics(client, zone, asked.seed)


def _facts(where: Where, asked: Asked) -> tuple[Machine, float, list[str]]:
    """Return the machine, USD an hour, and where they are from if they were not given."""
    told: list[str] = []
    cold_start, unbilled = asked.cold_start or 0.0, 0.0
    image, price = asked.image_seconds, asked.price
    if asked.cold_start is None:
        cold_start, unbilled, sentence = _recorded_start(where)
        told.append(sentence)
    if image is None:
        image = _measured_image(where)
        told.append("The seconds of an image are the median of three that were made just now.")
    if price is None:
        price = _list_price(where)
        told.append("The price is Baseten's list price of the instance type.")
    return Machine(cold_start, image, unbilled), price, told


def _recorded_start(where: Where) -> tuple[float, float, str]:
    """Return the seconds of a usual startup, those before its container, and a sentence."""
    now = int(time.time() * 1000)
    begin = now - RECORD_DAYS * 86_400_000
    summary = where.client().startups_summary(start_epoch_millis=begin, end_epoch_millis=now)
    if summary is None or summary.total_duration_ms.p50_ms is None:
        raise ClientError(f"Baseten recorded no startup of the last {RECORD_DAYS} days: give --cold-start.")
    total = summary.total_duration_ms.p50_ms / 1000
    phases = {each.phase: (each.duration_ms.p50_ms or 0) / 1000 for each in summary.phase_duration_ms}
    count = summary.total_duration_ms.sample_count
    sentence = f"The cold start is the median of {count} startups that Baseten recorded in {RECORD_DAYS} days."
    return total, min(total, sum(phases.get(name, 0.0) for name in UNBILLED)), sentence


def _measured_image(where: Where) -> float:
    from fast_truss.console import console

    def timed() -> float:
        started = time.monotonic()
        client.generate(PROMPT, timeout=where.timeout)
        return time.monotonic() - started

    with where.client() as client, console().status("making four images: a cold start may come first"):
        timed()
        return max(0.001, round(statistics.median(timed() for _ in range(3)), 3))


def _list_price(where: Where) -> float:
    from fast_truss.load import price_per_minute

    found = price_per_minute(where.client())
    if found is None:
        raise ClientError("Baseten does not tell the price of this instance type: give --price, in USD an hour.")
    return round(found[0] * 60, 4)


def _show(found: Traffic, rows: list[Row], best: Row, limit: float, command: str, assumptions: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{len(found.arrivals)} requests in {found.span / 86400:.3g} days: what users wait, and what a month costs"
    table = Table(title=title, title_justify="left", caption="*: on the Pareto front, nothing is cheaper and as quick")
    table.add_column("")
    table.add_column("settings")
    for name in ("USD a month", "mean wait", "p50", "p95", "p99", "cold starts"):
        table.add_column(name, justify="right")
    for row in rows:
        waits = [f"{seconds:.1f} s" for seconds in (row.mean, row.p50, row.p95, row.p99)]
        cells = [f"{row.usd:,.2f}", *waits, f"{row.cold_starts:,.0f}"]
        table.add_row("*" if row.front else "", row.name, *cells, style="bold green" if row is best else None)
    console = Console(highlight=False)
    console.print(table)
    console.print("Assumptions:", markup=False)
    for sentence in assumptions:
        console.print(f"- {sentence}", markup=False)
    if best.p95 <= limit:
        why = f"the cheapest with which 95 of 100 users wait at most {limit:g} s"
    else:
        why = f"none keeps 95 of 100 within {limit:g} s, and with this they wait least"
    console.print(f"Recommended: {best.name}, {why}.", markup=False)
    if best.choice.settings.wakes:
        console.print("Let the app wake the model when it is opened, as examples/backend.py does.", markup=False)
    print(command)


def _as_json(
    found: Traffic,
    machine: Machine,
    price: float,
    rows: list[Row],
    best: Row,
    limit: float,
    command: str,
    assumptions: list[str],
) -> dict[str, Any]:
    numbers = ("usd", "mean", "p50", "p95", "p99", "cold_starts")

    def shown(row: Row) -> dict[str, Any]:
        values = {name: round(getattr(row, name), 3) for name in numbers}
        return {"name": row.name, **values, "front": row.front, "wakes": row.choice.settings.wakes}

    return {
        "requests": len(found.arrivals),
        "days": found.span / 86400,
        "machine": {**dataclasses.asdict(machine), "usd_an_hour": price},
        "settings": [shown(row) for row in rows],
        "recommended": {**shown(best), "p95_limit": limit, "command": command},
        "assumptions": assumptions,
    }


def _options(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"

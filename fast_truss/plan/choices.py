"""Candidate settings, their simulated results, the recommended one, and the commands that apply it."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence

from fast_truss.console import replicas
from fast_truss.plan.simulation import Machine, Settings, simulate
from fast_truss.plan.traffic import Hours, Traffic, opened

DELAYS = (60, 300, 900, 1800, 3600)
MONTH = 365.25 / 12 * 86400


@dataclasses.dataclass(frozen=True)
class Choice:
    """A candidate. name: the settings in words. window: the schedule's, including the time to start before it."""

    name: str
    settings: Settings
    window: Hours | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """What all choices share. price: USD per hour of one replica. goal: highest acceptable p95 in seconds."""

    traffic: Traffic
    machine: Machine
    price: float
    goal: float
    typing: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of a choice. mean, p50, p95, p99: seconds from the request to its image.

    usd, cold_starts: per month. late: share of users who wait longer than the goal. front: on the Pareto front of usd
    and p95.
    """

    choice: Choice
    usd: float
    mean: float
    p50: float
    p95: float
    p99: float
    cold_starts: float
    late: float
    front: bool = False


def choices_for(found: Traffic, machine: Machine, most: int, hours: Hours | None) -> list[Choice]:
    """Return the settings to try. most: highest number of replicas. hours: those of a schedule."""
    choices = [Choice(f"always on, {replicas(count)}", Settings(count, count)) for count in range(1, most + 1)]
    more = f", at most {most}" if most > 1 else ""
    # Start early enough to be ready for the first user.
    early = 300.0 * math.ceil(machine.cold_start / 300)
    window = dataclasses.replace(hours, start=max(hours.start - early, 0.0)) if hours else None
    windows = found.windows(window) if window else ()
    for delay, wakes in itertools.product(DELAYS, (False, True)):
        settings = Settings(0, most, delay, wakes=wakes)
        if most > 1 and not wakes:
            choices.append(Choice(f"always 1{more}, delay {delay} s", dataclasses.replace(settings, min_replica=1)))
        sleeps, woken = f"to zero after {delay} s", ", app wakes it" if wakes else ""
        choices.append(Choice(sleeps + more + woken, settings))
        for count in sorted({1, 1 if wakes else most} if window else ()):
            on = dataclasses.replace(settings, windows=windows, window_replicas=count)
            choices.append(Choice(f"{replicas(count)} {window}{more}, otherwise {sleeps}{woken}", on, window))
    return choices


def enough_replicas(found: Traffic, image: float) -> int:
    """Return how many replicas serve the busiest hour at 70 percent utilization, from 1 to 10."""
    busiest = max(Counter(int(at / 3600) for at in found.arrivals).values())
    return min(max(math.ceil(busiest * image / 3600 / 0.7), 1), 10)


def rows_of(choices: Sequence[Choice], case: Case) -> list[Row]:
    """Simulate each choice. Returns the rows, cheapest first."""
    found, image = case.traffic, case.machine.image
    opened_at, months = opened(found.arrivals, case.typing, case.seed), MONTH / found.span
    rows = []
    for choice in choices:
        outcome = simulate(found.arrivals, found.span, choice.settings, case.machine, opened_at)
        p50, p95, p99 = (outcome.percentile(percent) + image for percent in (50, 95, 99))
        usd, starts = outcome.billed / 3600 * case.price * months, outcome.cold_starts * months
        rows.append(Row(choice, usd, outcome.mean() + image, p50, p95, p99, starts, outcome.late(case.goal - image)))
    # Compare rounded values, as shown: nobody pays for a hundredth of a second.
    rows.sort(key=lambda row: (round(row.usd, 2), round(row.p95, 1)))
    quickest = [math.inf, *itertools.accumulate((round(row.p95, 1) for row in rows), min)]
    return [dataclasses.replace(row, front=round(row.p95, 1) < best) for row, best in zip(rows, quickest, strict=False)]


def recommended(rows: Sequence[Row], goal: float) -> Row:
    """Return the cheapest row with p95 within the goal (seconds), or the row with the lowest p95."""
    return next((row for row in rows if row.p95 <= goal), min(rows, key=lambda row: row.p95))


def command_line(choice: Choice, target: Sequence[str], timezone: str) -> str:
    """Return the command that applies the choice, and for a schedule a second line with a comment."""
    settings, window = choice.settings, choice.window
    line = (
        f"{' '.join(['fast-truss autoscaling', *target])} --min-replica {settings.min_replica} --max-replica "
        f"{settings.max_replica} --scale-down-delay {settings.scale_down_delay:.0f} --concurrency-target 1"
    )
    said = f"an autoscaling schedule for {window} ({timezone}) with {replicas(settings.window_replicas)}"
    return f"{line}\n# and on Baseten, {said}" if window else line

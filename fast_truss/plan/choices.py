"""The settings to choose from, what comes of each, which of them is recommended, and the commands that set it."""

import bisect
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fast_truss.plan.simulation import Machine, Settings, simulate
from fast_truss.plan.traffic import Hours, Traffic, clock, opened

DELAYS = (60, 300, 900, 1800, 3600)
MONTH = 365.25 / 12 * 86400
MOST_REPLICAS = 10
# The share of users that wait longer than the goal: surely little enough, and perhaps. The goal is 5 of 100.
SURE, PERHAPS, MOST_CLOSE = 0.025, 0.1, 8
DRAWS, ENOUGH_SIMULATED = (4, 16), 2_000_000


@dataclasses.dataclass(frozen=True)
class Choice:
    """Settings, in words, and what the command line sets. window: of the schedule, with the time to start before it."""

    name: str
    settings: Settings
    window: Hours | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """What comes of a choice. mean, p50, p95, p99: seconds from the request until the image is there.

    usd, cold_starts: of a month. late: the share of users that wait longer than the goal. front: no other choice is
    better in one of usd and p95 and as good in the other.
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

    def numbers(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        numbers = {name: round(value, 3) for name, value in vars(self).items() if isinstance(value, float)}
        return {"name": self.choice.name, **numbers, "front": self.front, "wakes": self.choice.settings.wakes}


@dataclasses.dataclass(frozen=True)
class Case:
    """What every choice is tried with. price: USD an hour of one replica. goal: seconds that 95 of 100 may wait."""

    traffic: Traffic
    machine: Machine
    price: float
    goal: float
    typing: float
    seed: int


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


def rows_of(choices: Sequence[Choice], case: Case) -> list[Row]:
    """Simulate each choice. Returns the rows, the cheapest first."""
    found, image = case.traffic, case.machine.image
    opened_at = opened(found.arrivals, case.typing, case.seed)
    months = MONTH / found.span
    rows = []
    for choice in choices:
        outcome = simulate(found.arrivals, found.span, choice.settings, case.machine, opened_at)
        delays = (outcome.mean(), *map(outcome.percentile, (50, 95, 99)))
        mean, p50, p95, p99 = (delay + image for delay in delays)
        usd, late = outcome.billed / 3600 * case.price * months, outcome.late(case.goal - image)
        rows.append(Row(choice, usd, mean, p50, p95, p99, outcome.cold_starts * months, late))
    # As they are shown: a hundredth of a second more is no reason to pay.
    rows.sort(key=lambda row: (round(row.usd, 2), round(row.p95, 1)))
    quickest = [math.inf, *itertools.accumulate((round(row.p95, 1) for row in rows), min)]
    return [dataclasses.replace(row, front=round(row.p95, 1) < best) for row, best in zip(rows, quickest, strict=False)]


def recommended(rows: Sequence[Row], goal: float) -> Row:
    """Return the cheapest row that keeps p95 within the goal, in seconds; if none does, the one with the least p95.

    rows: the cheapest first.
    """
    return next((row for row in rows if row.p95 <= goal), min(rows, key=lambda row: row.p95))


def by_chance(rows: Sequence[Row], best: Row, case: Case) -> Counter[str]:
    """Return what is recommended, and how often, with the days of the traffic drawn anew, of what is close."""
    sure = next((row.usd for row in rows if row.late <= SURE), math.inf)
    close = [row for row in rows if row is best or (row.late <= PERHAPS and row.usd <= 1.05 * sure)][:MOST_CLOSE]
    found = Counter({best.choice.name: 1})
    draws = ENOUGH_SIMULATED // (len(close) * len(case.traffic.arrivals))
    for seed in range(1, 1 + min(max(draws, DRAWS[0]), DRAWS[1]) * (len(close) > 1)):
        drawn = dataclasses.replace(case, traffic=case.traffic.redrawn(seed), seed=case.seed + seed)
        found[recommended(rows_of([row.choice for row in close], drawn), case.goal).choice.name] += 1
    return found


def command_line(choice: Choice, target: list[str], timezone: str) -> str:
    """Return the command that sets the choice; with a schedule, two that follow each other."""
    settings, window = choice.settings, choice.window
    line = (
        f"fast-truss {' '.join(['autoscaling', *target])} --min-replica {settings.min_replica} --max-replica "
        f"{settings.max_replica} --scale-down-delay {settings.scale_down_delay:.0f} --concurrency-target "
        f"{settings.concurrency_target}"
    )
    if not window:
        return line
    return (
        f"{line} && fast-truss {' '.join(['schedule', *target])} --weekdays {window.weekdays} --from "
        f"{clock(window.start)} --to {clock(window.end)} --timezone {timezone} --min-replica "
        f"{settings.window_replicas} --max-replica {settings.max_replica}"
    )


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"

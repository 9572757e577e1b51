"""The report of a plan: a dict, printed as JSON or as tables and sentences."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from fast_truss.plan.choices import Case, Row, command_line
from fast_truss.plan.simulation import ASSUMPTIONS
from fast_truss.plan.traffic import DAY

COLUMNS = {"name": ("settings", "{}"), "usd": ("USD a month", "{:,.2f}"), "mean": ("mean wait", "{:.1f} s")}
COLUMNS |= {name: (name, "{:.1f} s") for name in ("p50", "p95", "p99")}
COLUMNS |= {"cold_starts": ("cold starts", "{:,.0f}")}


def answer(case: Case, rows: list[Row], best: Row, notes: list[str], target: list[str], zone: str) -> dict[str, Any]:
    """Return the report. rows: cheapest first. notes: about the machine. target: options for the commands."""

    def shown(row: Row) -> dict[str, Any]:
        numbers = {name: round(value, 3) for name, value in vars(row).items() if isinstance(value, float)}
        about = {"front": row.front, "wakes": row.choice.settings.wakes}
        return {"name": row.choice.name, **numbers, **about, "command": command_line(row.choice, target, zone)}

    machine, found = case.machine, case.traffic
    return {
        "requests": len(found.arrivals),
        "days": found.span / DAY,
        "machine": {**dataclasses.asdict(machine), "usd_an_hour": case.price},
        "settings": [shown(row) for row in rows],
        "cheapest": shown(rows[0]),
        "recommended": {**shown(best), "p95_limit": case.goal},
        "goal": f"95% of users wait at most {case.goal:g} s. Set another with --p95.",
        "difference": difference(best, rows[0], case.goal),
        "warnings": [*found.warnings(), *close_ones(rows, best, len(found.arrivals))],
        "assumptions": [
            f"Traffic: {found.source}, {len(found.arrivals)} requests in {found.span / DAY:.3g} days, assumed typical.",
            *found.notes,
            *notes,
            f"A cold start takes {machine.cold_start:g} s, of which {machine.cold_start - machine.unbilled:g} s are "
            f"billed. An image takes {machine.image:g} s. A replica costs USD {case.price:g} per hour.",
            f"Each user opens the app and types for {case.typing:g} s (median of a log-normal distribution) before the "
            "request. Users who send no request are not counted.",
            f"Times are in {zone}; the seed is {case.seed}.",
            *ASSUMPTIONS,
        ],
    }


def difference(best: Row, cheapest: Row, goal: float) -> str:
    """Return what the best settings gain over the cheapest, and whether they reach the goal."""
    waits = f"95% of users wait at most {best.p95:.1f} s instead of {cheapest.p95:.1f} s."
    said = f"For USD {best.usd - cheapest.usd:,.2f} more a month, {waits}"
    if best.choice == cheapest.choice:
        said = "The cheapest settings are recommended."
    return said if best.p95 <= goal else f"{said} No settings reach the goal: these have the shortest waits."


def close_ones(rows: Sequence[Row], best: Row, count: int) -> list[str]:
    """Return a warning if similar traffic could lead to another recommendation. count: number of requests."""
    # Two standard errors of the 5% that may wait longer, as if requests were independent; at least 1%.
    margin = max(2 * math.sqrt(0.05 * 0.95 / count), 0.01)
    sure = next((row.usd for row in rows if row.late <= max(0.05 - margin, 0.0)), math.inf)
    close = [row for row in rows if row is not best and row.usd <= sure and row.late <= 0.05 + margin]
    others = [f"{row.choice.name} (USD {row.usd:,.2f}) {row.late:.1%}" for row in close]
    said = (
        "Too close to tell: similar traffic could lead to another recommendation. The goal lets 5% of users wait "
        f"longer. With the recommended settings {best.late:.1%} do; with others: {', '.join(others[:3])}."
    )
    return [said] if others else []


def show(found: dict[str, Any]) -> None:
    """Print all settings, the assumptions, and the cheapest and the recommended settings side by side."""
    from rich.console import Console
    from rich.table import Table

    best, cheapest = found["recommended"], found["cheapest"]
    title = f"{found['requests']} requests in {found['days']:.3g} days: how long users wait, what a month costs"
    table = Table("", title=title, title_justify="left", caption="*: no other settings are cheaper and as fast")
    pair = Table("", "cheapest", "recommended")
    for name, (words, form) in COLUMNS.items():
        table.add_column(words, justify="left" if name == "name" else "right")
        pair.add_row(words, form.format(cheapest[name]), form.format(best[name]))
    for row in found["settings"]:
        cells = [form.format(row[name]) for name, (_, form) in COLUMNS.items()]
        table.add_row("*" * row["front"], *cells, style="bold green" if row["name"] == best["name"] else None)
    woken = ["The app must wake the model when it opens, as examples/backend.py does."] if best["wakes"] else []
    console = Console(highlight=False)
    console.print(table)
    console.print("Assumptions:", *(f"- {line}" for line in found["assumptions"]), sep="\n", markup=False)
    console.print(pair)
    console.print(f"Goal: {found['goal']}", found["difference"], *found["warnings"], *woken, sep="\n", markup=False)
    print(f"Cheapest:\n{cheapest['command']}\nRecommended:\n{best['command']}")

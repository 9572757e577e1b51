"""The answer of a plan: one dict, which is printed as JSON, or as tables and sentences."""

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
    """Return all that is to be said. rows: the cheapest first. notes: on the machine. target: of the commands."""

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
        "goal": f"95 of 100 users wait at most {case.goal:g} s: set another with --p95.",
        "difference": difference(best, rows[0], case.goal),
        "warnings": [*found.warnings(), *close_ones(rows, best, len(found.arrivals))],
        "assumptions": [
            f"Traffic: {found.source}, {len(found.arrivals)} requests, {found.span / DAY:.3g} days: a month is alike.",
            *found.notes,
            *notes,
            f"A cold start takes {machine.cold_start:g} s, {machine.cold_start - machine.unbilled:g} s of it paid for. "
            f"An image takes {machine.image:g} s. A replica costs USD {case.price:g} an hour.",
            f"Each user opened the app before the request and typed for {case.typing:g} s (the median, log-normal). "
            "Who opens it and asks for nothing is not counted.",
            f"Times are those of {zone}; seed {case.seed}.",
            *ASSUMPTIONS,
        ],
    }


def difference(best: Row, cheapest: Row, goal: float) -> str:
    """Return what best buys over the cheapest, and whether it reaches the goal."""
    waits = f"95 of 100 users wait at most {best.p95:.1f} s and not {cheapest.p95:.1f} s."
    said = f"USD {best.usd - cheapest.usd:,.2f} a month more: {waits}"
    if best.choice == cheapest.choice:
        said = "The cheapest settings are recommended."
    return said if best.p95 <= goal else f"{said} No settings reach the goal: with these users wait least."


def close_ones(rows: Sequence[Row], best: Row, count: int) -> list[str]:
    """Return a sentence if, on other days like these, others may be recommended. count: of the requests."""
    # Two standard errors of the 5 of 100 that may wait longer, as if each came by chance; and never less than 1 of 100.
    margin = max(2 * math.sqrt(0.05 * 0.95 / count), 0.01)
    sure = next((row.usd for row in rows if row.late <= max(0.05 - margin, 0.0)), math.inf)
    close = [row for row in rows if row is not best and row.usd <= sure and row.late <= 0.05 + margin]
    others = [f"{row.choice.name} (USD {row.usd:,.2f}) {row.late:.1%}" for row in close]
    said = (
        "Too close to tell: on other days of the same traffic others may be recommended. The goal lets 5% of the users "
        f"wait longer; with the recommended settings {best.late:.1%} do, with {', '.join(others[:3])}."
    )
    return [said] if others else []


def show(found: dict[str, Any]) -> None:
    """Print all settings, the assumptions, and the cheapest and the recommended side by side."""
    from rich.console import Console
    from rich.table import Table

    best, cheapest = found["recommended"], found["cheapest"]
    title = f"{found['requests']} requests in {found['days']:.3g} days: what users wait, and what a month costs"
    table = Table("", title=title, title_justify="left", caption="*: nothing is cheaper and as quick")
    pair = Table("", "cheapest", "recommended")
    for name, (words, form) in COLUMNS.items():
        table.add_column(words, justify="left" if name == "name" else "right")
        pair.add_row(words, form.format(cheapest[name]), form.format(best[name]))
    for row in found["settings"]:
        cells = [form.format(row[name]) for name, (_, form) in COLUMNS.items()]
        table.add_row("*" * row["front"], *cells, style="bold green" if row["name"] == best["name"] else None)
    woken = ["Let the app wake the model when it is opened, as examples/backend.py does."] if best["wakes"] else []
    console = Console(highlight=False)
    console.print(table)
    console.print("Assumptions:", *(f"- {line}" for line in found["assumptions"]), sep="\n", markup=False)
    console.print(pair)
    console.print(f"Goal: {found['goal']}", found["difference"], *found["warnings"], *woken, sep="\n", markup=False)
    print(f"Cheapest:\n{cheapest['command']}\nRecommended:\n{best['command']}")

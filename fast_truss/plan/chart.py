"""One chart of a plan: what a month costs against what users wait, with the Pareto front marked."""

from collections.abc import Sequence
from pathlib import Path

from fast_truss import charts
from fast_truss.plan.choices import Case, Row

FRONT, REST, CHOSEN = "#16a34a", "#aaaab2", "#dc2626"


def save(rows: Sequence[Row], chosen: Row, case: Case, file: Path) -> None:
    """Draw the rows into a PNG, on logarithmic axes: the front numbered and named below, chosen with a red ring."""
    from matplotlib.ticker import LogFormatter

    front = [row for row in rows if row.front]
    figure = charts.figure(11, 6.5 + 0.26 * len(front))
    title = f"{len(case.traffic.arrivals)} requests, {case.traffic.source}"[:90]
    axes = figure.add_subplot(xscale="log", yscale="log")
    charts.style(axes, title, "USD a month", "seconds that 95 of 100 users wait at most")
    axes.axhline(case.goal, color=CHOSEN, linestyle=":", linewidth=1, label=f"the goal: {case.goal:g} s")
    axes.scatter([row.usd for row in rows], [row.p95 for row in rows], color=REST, label="other settings")
    axes.plot([row.usd for row in front], [row.p95 for row in front], "o-", color=FRONT, label="nothing beats these")
    axes.scatter([chosen.usd], [chosen.p95], 220, "none", edgecolor=CHOSEN, linewidth=2, label="recommended")
    named = []
    for number, row in enumerate(front, 1):
        axes.annotate(str(number), (row.usd, row.p95), (7, 7), textcoords="offset points")
        named.append(f"{number}  {row.choice.name}: USD {row.usd:,.0f}, {row.p95:.1f} s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(3, 0.6)))
    axes.legend()
    figure.supxlabel("\n".join(named), x=0.06, ha="left", fontsize=10)
    figure.savefig(file)

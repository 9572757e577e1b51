"""One picture of a plan: what a month costs against what users wait, with the Pareto front marked."""

import math
from pathlib import Path
from typing import Any

FRONT, REST, CHOSEN = (22, 163, 74), (170, 170, 178), (220, 38, 38)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1100, 620, 90, 40, 80, 80
LINE = 26


def save(rows: list[Any], chosen: Any, title: str, file: Path) -> None:
    """Draw the rows of a plan into a PNG. Both axes are logarithmic; chosen has a red ring."""
    from PIL import Image, ImageDraw, ImageFont

    font, large = ImageFont.load_default(16), ImageFont.load_default(22)
    front = [row for row in rows if row.front]
    legend = HEIGHT + LINE * len(front) + 20
    picture = Image.new("RGB", (WIDTH, legend), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((20, 20), title, fill="black", font=large)
    costs, waits = _range([row.usd for row in rows]), _range([row.p95 for row in rows])

    def at(row: Any) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * _part(row.usd, costs)
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _part(row.p95, waits)

    for tick in _ticks(costs):
        x = LEFT + (WIDTH - LEFT - RIGHT) * _part(tick, costs)
        draw.line([(x, TOP), (x, HEIGHT - BOTTOM)], fill=(225, 225, 228))
        draw.text((x, HEIGHT - BOTTOM + 8), f"{tick:g}", fill=(90, 90, 96), font=font, anchor="ma")
    for tick in _ticks(waits):
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _part(tick, waits)
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=(225, 225, 228))
        draw.text((LEFT - 8, y), f"{tick:g}", fill=(90, 90, 96), font=font, anchor="rm")
    draw.text((WIDTH / 2, HEIGHT - 36), "USD a month", fill=(40, 40, 46), font=font, anchor="ma")
    draw.text((20, TOP - 26), "seconds that 95 of 100 users wait at most", fill=(40, 40, 46), font=font)
    if len(front) > 1:
        draw.line([at(row) for row in front], fill=FRONT, width=2)
    for row in rows:
        _dot(draw, at(row), 5, REST)
    for number, row in enumerate(front, 1):
        x, y = at(row)
        _dot(draw, (x, y), 7, FRONT)
        draw.text((x + 9, y - 18), str(number), fill=(40, 40, 46), font=font)
        words = f"{number}  {row.name}: USD {row.usd:,.0f}, {row.p95:.1f} s"
        colour = CHOSEN if row is chosen else (40, 40, 46)
        draw.text((LEFT, HEIGHT + LINE * (number - 1)), words, fill=colour, font=font)
    x, y = at(chosen)
    draw.ellipse([(x - 12, y - 12), (x + 12, y + 12)], outline=CHOSEN, width=3)
    picture.save(file)


def _dot(draw: Any, at: tuple[float, float], radius: float, colour: tuple[int, int, int]) -> None:
    draw.ellipse([(at[0] - radius, at[1] - radius), (at[0] + radius, at[1] + radius)], fill=colour)


def _range(values: list[float]) -> tuple[float, float]:
    """Return bounds with some air around, as logarithms. Nothing is drawn below a hundredth."""
    found = [math.log10(max(value, 0.01)) for value in values]
    air = max(0.08 * (max(found) - min(found)), 0.05)
    return min(found) - air, max(found) + air


def _part(value: float, bounds: tuple[float, float]) -> float:
    return (math.log10(max(value, 0.01)) - bounds[0]) / (bounds[1] - bounds[0])


def _ticks(bounds: tuple[float, float]) -> list[float]:
    """Return 1, 2 and 5 times powers of ten, and more of them where the bounds are close."""
    powers = range(math.floor(bounds[0]), math.ceil(bounds[1]) + 1)
    for digits in ((1, 2, 5), range(1, 10), [ten / 10 for ten in range(10, 100)]):
        found = [digit * 10.0**power for power in powers for digit in digits]
        found = [tick for tick in found if bounds[0] <= math.log10(tick) <= bounds[1]]
        if len(found) >= 3:
            return found
    return found

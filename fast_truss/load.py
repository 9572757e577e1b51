"""A bounded load test: how long requests take when some come at once, and what 1,000 images cost."""

import asyncio
import collections
import dataclasses
import json
import time
from typing import Any

from fast_truss.api import AsyncClient, image_bytes
from fast_truss.console import console
from fast_truss.errors import ClientError
from fast_truss.rules import Wait

# Each request is paid for: what fails so often in a row goes on failing.
GIVE_UP_AFTER = 10


@dataclasses.dataclass
class Result:
    """seconds: of each request that gave images. errors: how many of each kind. wall: seconds of the whole run.

    tried_again: how often a request was tried again, by the kind of error. Its seconds hold the pause. failed: how
    many of the last requests, without one that gave images. last_error: in a sentence.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    tried_again: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    images: int = 0
    wall: float = 0.0
    failed: int = 0
    last_error: str = ""

    @property
    def given_up(self) -> bool:
        return self.failed >= GIVE_UP_AFTER

    def count_pause(self, wait: Wait) -> None:
        if wait.reason:
            self.tried_again[kind_of(wait.reason)] += 1


async def run(
    client: AsyncClient, result: Result, request: dict[str, Any], requests: int, concurrency: int, timeout: float
) -> None:
    """Send requests, so many at once, when the model is ready, until too many fail in a row. A bar shows how far it is.

    client: its on_pause is result.count_pause.
    """
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    left = iter(range(requests))

    async def ask_one_after_the_other() -> None:
        for number in left:
            if result.given_up:
                return
            began = time.monotonic()
            try:
                answer = await client.generate(**request, seed=number, timeout=timeout)
                seconds = time.monotonic() - began
                result.images += len(image_bytes(answer))
                result.seconds.append(seconds)
                result.failed = 0
            except ClientError as error:
                result.errors[kind_of(error)] += 1
                result.failed, result.last_error = result.failed + 1, str(error)
            bar.advance(task)

    async with client:
        # The cold start is not what is measured here.
        await client.wake()
        await client.wait_until_ready(timeout)
        result.tried_again.clear()
        columns = [*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()]
        with Progress(*columns, console=console()) as bar:
            task = bar.add_task("asking", total=requests)
            started = time.monotonic()
            await asyncio.gather(*[ask_one_after_the_other() for _ in range(concurrency)])
            result.wall = time.monotonic() - started


def kind_of(error: ClientError) -> str:
    return type(error).__name__ if error.status is None else f"{type(error).__name__} {error.status}"


def percentile(values: list[float], percent: int) -> float | None:
    """Return the smallest value that is not below percent of them: the nearest rank."""
    if not values:
        return None
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def price_per_minute(client: Any) -> tuple[float, int] | None:
    """Return USD a minute of one replica, and how many replicas there are. None: Baseten does not tell."""
    if client.local:
        return None
    try:
        status = client.status()
        deployment = client.ask_management(
            "get_models_deployments_deployment_id", model_id=client.target.model_id, deployment_id=status.deployment_id
        )
        priced = client.ask_management("get_instance_type_prices").instance_types
    except ClientError:
        return None
    price = {each.instance_type.name: each.price for each in priced}.get(deployment.instance_type_name)
    return None if price is None else (price, max(1, status.replicas))


def report(result: Result, price: tuple[float, int] | None, as_json: bool) -> None:
    """Print what came out."""
    minutes = result.wall / 60
    spent = price[0] * price[1] * minutes if price else None
    found: dict[str, Any] = {
        "requests": len(result.seconds) + sum(result.errors.values()),
        "images": result.images,
        **{f"p{percent}": percentile(result.seconds, percent) for percent in (50, 95, 99)},
        "images_per_minute": result.images / minutes if minutes else None,
        "usd_per_1000_images": spent / result.images * 1000 if spent is not None and result.images else None,
        "errors": dict(result.errors),
        "tried_again": dict(result.tried_again),
        "given_up": result.given_up,
    }
    if result.given_up:
        sentence = f"Given up after {result.failed} failures in a row. The last one: {result.last_error}"
        console().print(sentence, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name in ("p50", "p95", "p99"):
        table.add_row(name, "" if found[name] is None else f"{found[name]:.2f} s")
    rate = found["images_per_minute"]
    table.add_row("images a minute", "" if rate is None else f"{rate:.1f}")
    cost = found["usd_per_1000_images"]
    table.add_row("USD for 1,000 images", "not known here" if cost is None else f"{cost:.2f}, at this load")
    for name in ("errors", "tried_again"):
        counted = ", ".join(f"{count} x {kind}" for kind, count in found[name].items())
        table.add_row(name.replace("_", " "), counted or "none")
    Console(highlight=False).print(table)

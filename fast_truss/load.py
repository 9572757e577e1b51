"""A bounded load test: latency of many requests, and what 1,000 images cost."""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import json
import signal
import statistics
import sys
import time
from typing import Annotated, Any

import typer

from fast_truss import AsyncClient, Client, ClientError, InvalidInput, fields, image_bytes
from fast_truss.console import console, print_table
from fast_truss.options import AsJson, Where

GIVE_UP_AFTER = 10  # each request costs money, and so many failures in a row will not end
LOOK_SECONDS = 2.0
CLOSED = "A closed loop sends nothing while all requests wait, so few of them meet a stall: see max, or use --rate."


@dataclasses.dataclass
class Result:
    """seconds: latency of each successful request, from when it was due. failed: failures in a row.

    wall: duration of the test in seconds. replicas: active replicas at each poll.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    images: int = 0
    failed: int = 0
    wall: float = 0.0
    replicas: list[int] = dataclasses.field(default_factory=list)


def load(
    where: Where,
    context: typer.Context,
    requests: Annotated[int, typer.Option(min=1, max=10_000, help="Number of requests.")] = 100,
    concurrency: Annotated[int, typer.Option(min=1, max=100, help="Requests at once (closed loop).")] = 4,
    rate: Annotated[float | None, typer.Option(min=0.001, max=100, help="Requests per second (open loop).")] = None,
    as_json: AsJson = False,
) -> None:
    """Send many requests, and show their latency and what 1,000 images cost. Each request costs money.

    Accepts any field of the model, such as --prompt "a boat" or --width 512. Ctrl-C prints the report so far.
    """
    given, rest = fields.given(context.args)
    if rest:
        raise InvalidInput(f"{rest[0]!r} belongs to no option: set the prompt with --prompt.")
    client, result, code = where.client(), Result(), 0
    asked, price = fields.request_of(client, given, where.timeout), price_per_minute(client)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        client.wake(where.ask)
        client.wait_until_ready(where.timeout)  # leave the cold start out of the measurement
        asked = {"timeout": where.timeout, **fields.example(client, where.timeout, **asked)}
        each = [{"seed": number, **asked} for number in range(requests)]
        asyncio.run(run(where.async_client(), result, each, concurrency, rate))
    except KeyboardInterrupt:
        code = 130
    report(result, price, f"open loop, {rate:g} per second" if rate else f"closed loop, {concurrency} at once", as_json)
    sys.exit(code or bool(result.errors))


async def run(
    client: AsyncClient, result: Result, requests: list[dict[str, Any]], concurrency: int, rate: float | None
) -> None:
    """Send the requests to a ready model, until too many fail in a row."""
    from rich.progress import Progress

    slots = asyncio.Semaphore(len(requests) if rate else concurrency)

    async def ask(number: int, request: dict[str, Any]) -> None:
        await asyncio.sleep(number / rate if rate else 0)
        async with slots:
            if result.failed >= GIVE_UP_AFTER:
                return
            due = time.monotonic()
            try:
                answer = await client.generate(**request)
                result.images += len(image_bytes(answer))
                result.seconds.append(time.monotonic() - due)
                result.failed = 0
            except ClientError as error:
                result.errors[str(error)] += 1
                result.failed += 1
            bar.advance(task)

    with Progress(console=console()) as bar:
        task = bar.add_task("sending requests", total=len(requests))
        async with client:
            looking, started = asyncio.create_task(_count_replicas(client, result)), time.monotonic()
            try:
                await asyncio.gather(*itertools.starmap(ask, enumerate(requests)))
            finally:
                result.wall = time.monotonic() - started
                looking.cancel()
                await asyncio.wait([looking])


async def _count_replicas(client: AsyncClient, result: Result) -> None:
    while True:
        with contextlib.suppress(ClientError):
            result.replicas.append((await client.status()).replicas)
        await asyncio.sleep(LOOK_SECONDS)


def percentile(values: list[float], percent: int) -> float | None:
    """Return the percentile by the nearest-rank method, None without values."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)] if values else None


def price_per_minute(client: Client) -> float | None:
    """Return USD per minute of one replica. None: a local server, or Baseten does not list the price."""
    try:
        names: dict[str, Any] = {"model_id": client.target.model_id, "deployment_id": client.status().deployment_id}
        kind = client.ask_management("get_models_deployments_deployment_id", **names).instance_type_name
        priced = client.ask_management("get_instance_type_prices").instance_types
    except ClientError:
        return None
    return {each.instance_type.name: each.price for each in priced}.get(kind)


def report(result: Result, price: float | None, loop: str, as_json: bool) -> None:
    """Print the report. price: USD per minute of one replica."""
    replica_seconds = result.wall * statistics.mean(result.replicas or [1])  # at least the one that was ready
    cost = price / 60 * replica_seconds / result.images * 1000 if price is not None and result.images else None
    found: dict[str, Any] = {
        "requests": len(result.seconds) + sum(result.errors.values()),
        "images": result.images,
        **{f"p{percent}": percentile(result.seconds, percent) for percent in (50, 95, 99)},
        "max": max(result.seconds, default=None),
        "replica_seconds": replica_seconds,
        "usd_per_1000_images": cost,
    }
    if result.failed >= GIVE_UP_AFTER:
        console().print(f"Gave up after {result.failed} failures in a row.")
    if as_json:
        return print(json.dumps({"loop": loop, **found, "errors": result.errors}))
    known = {name: "unknown" if value is None else str(round(value, 2)) for name, value in found.items()}
    rows = [[name.replace("_", " "), value] for name, value in known.items()]
    rows += [[f"{count} failed", sentence] for sentence, count in result.errors.items()]
    print_table("Times in seconds, and the cost at this load", ("", loop), rows)
    if loop.startswith("closed"):
        print(CLOSED)

"""A bounded load test: how long requests take when many come at once, and what 1,000 images cost."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import signal
import sys
import time
from typing import Annotated, Any

import typer

from fast_truss import AsyncClient, Client, ClientError, InvalidInput, fields, image_bytes
from fast_truss.console import console, print_table
from fast_truss.options import AsJson, Where

GIVE_UP_AFTER = 10  # you pay for each request, and what fails so often in a row goes on failing
LOOK_SECONDS = 2.0
CLOSED = "In a closed loop nobody asks while all wait, so few requests meet a stall: see max, or use --rate."


@dataclasses.dataclass
class Result:
    """seconds: of each request that gave images, since it was due. failed: how many of the last requests gave none."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    tried_again: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    images: int = 0
    wall: float = 0.0
    replica_seconds: float = 0.0
    failed: int = 0
    last_error: str = ""

    def count_pause(self, wait: Any) -> None:
        if wait.reason:
            self.tried_again[kind_of(wait.reason)] += 1


def load(
    where: Where,
    context: typer.Context,
    requests: Annotated[int, typer.Option(min=1, max=10_000, help="How many in all.")] = 100,
    concurrency: Annotated[int, typer.Option(min=1, max=100, help="Requests at once: a closed loop.")] = 4,
    rate: Annotated[
        float | None, typer.Option(min=0.001, max=100, help="Requests a second, however long they take: an open loop.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What each image shows.")] = "a lighthouse on a cliff at dawn",
    as_json: AsJson = False,
) -> None:
    """Send many requests, and show how long they took and what 1,000 images cost. You pay for each one.

    Takes any field of the model, such as --width 512. Ctrl-C prints the report so far.
    """
    given, rest = fields.given(context.args)
    if rest:
        raise InvalidInput(f"{rest[0]!r} belongs to no option: give the prompt with --prompt.")
    client, result, code = where.client(), Result(), 0
    request = {"prompt": prompt, **fields.request_of(client, given, where.timeout)}
    price = price_per_minute(client)
    asking = where.async_client(on_pause=result.count_pause)
    counting = None if client.local else where.async_client()
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        asyncio.run(run(asking, counting, result, request, requests, concurrency, rate, where.timeout))
    except KeyboardInterrupt:
        code = 130
    finally:
        signal.signal(signal.SIGTERM, before)
    report(result, price, f"open loop, {rate:g} a second" if rate else f"closed loop, {concurrency} at once", as_json)
    sys.exit(code or bool(result.errors))


async def run(
    client: AsyncClient,
    counting: AsyncClient | None,
    result: Result,
    request: dict[str, Any],
    requests: int,
    concurrency: int,
    rate: float | None,
    timeout: float,
) -> None:
    """Send the requests when the model is ready, until too many fail in a row. counting: looks at the replicas."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    async def ask(number: int, due: float) -> None:
        if result.failed < GIVE_UP_AFTER:
            try:
                answer = await client.generate(**{"seed": number, **request}, timeout=timeout)
                result.images += len(image_bytes(answer))
                result.seconds.append(time.monotonic() - due)
                result.failed = 0
            except ClientError as error:
                result.errors[kind_of(error)] += 1
                result.failed, result.last_error = result.failed + 1, str(error)
            bar.advance(task)

    async def ask_one_after_the_other() -> None:
        for number in left:
            await ask(number, time.monotonic())

    async def ask_at(number: int, due: float) -> None:
        await asyncio.sleep(due - time.monotonic())
        await ask(number, due)

    async with client:
        await client.wake()
        await client.wait_until_ready(timeout)  # the cold start is not what is measured here
        result.tried_again.clear()
        columns = [*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()]
        with Progress(*columns, console=console()) as bar:
            task, left, started = bar.add_task("asking", total=requests), iter(range(requests)), time.monotonic()
            looking = asyncio.create_task(_count_replicas(counting, result)) if counting else None
            try:
                if rate:
                    await asyncio.gather(*(ask_at(number, started + number / rate) for number in left))
                else:
                    await asyncio.gather(*(ask_one_after_the_other() for _ in range(concurrency)))
            finally:
                result.wall = time.monotonic() - started
                if looking:
                    looking.cancel()
                    await asyncio.wait([looking])


async def _count_replicas(client: AsyncClient, result: Result) -> None:
    """Add up the seconds of active replicas until cancelled."""
    active, since = 1, time.monotonic()  # it was ready just before
    try:
        async with client:
            while True:
                with contextlib.suppress(ClientError):
                    active = (await client.status()).replicas
                now = time.monotonic()
                result.replica_seconds, since = result.replica_seconds + active * (now - since), now
                await asyncio.sleep(LOOK_SECONDS)
    finally:
        result.replica_seconds += active * (time.monotonic() - since)


def kind_of(error: ClientError) -> str:
    return type(error).__name__ if error.status is None else f"{type(error).__name__} {error.status}"


def percentile(values: list[float], percent: int) -> float | None:
    """Return the smallest value that is not below percent of them: the nearest rank."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)] if values else None


def price_per_minute(client: Client) -> float | None:
    """Return USD a minute of one replica. None: Baseten does not tell."""
    if client.local:
        return None
    try:
        names: dict[str, Any] = {"model_id": client.target.model_id, "deployment_id": client.status().deployment_id}
        kind = client.ask_management("get_models_deployments_deployment_id", **names).instance_type_name
        priced = client.ask_management("get_instance_type_prices").instance_types
    except ClientError:
        return None
    return {each.instance_type.name: each.price for each in priced}.get(kind)


def report(result: Result, price: float | None, loop: str, as_json: bool) -> None:
    """Print what came out. price: USD a minute of one replica."""
    spent = None if price is None else price * result.replica_seconds / 60
    found: dict[str, Any] = {
        "loop": loop,
        "requests": len(result.seconds) + sum(result.errors.values()),
        "images": result.images,
        **{f"p{percent}": percentile(result.seconds, percent) for percent in (50, 95, 99)},
        "max": max(result.seconds, default=None),
        "images_per_minute": result.images / result.wall * 60 if result.wall else None,
        "replica_seconds": result.replica_seconds,
        "usd_per_1000_images": spent / result.images * 1000 if spent is not None and result.images else None,
        "errors": dict(result.errors),
        "tried_again": dict(result.tried_again),
        "given_up": result.failed >= GIVE_UP_AFTER,
    }
    if found["given_up"]:
        sentence = f"Gave up after {result.failed} failures in a row. The last one: {result.last_error}"
        console().print(sentence, markup=False, soft_wrap=True)
    if as_json:
        return print(json.dumps(found))
    rows = [[name, f"{found[name]:.2f} s"] for name in ("p50", "p95", "p99", "max") if found[name] is not None]
    rows.append(["images a minute", f"{found['images_per_minute'] or 0:.1f}"])
    cost = found["usd_per_1000_images"]
    rows.append(["USD for 1,000 images", "not known" if cost is None else f"{cost:.2f}, at this load"])
    for name in ("errors", "tried_again"):
        counted = ", ".join(f"{count} x {kind}" for kind, count in found[name].items())
        rows.append([name.replace("_", " "), counted or "none"])
    print_table("", (f"{found['requests']} requests", loop), rows)
    if loop.startswith("closed"):
        print(CLOSED)

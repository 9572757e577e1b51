"""Wake a model, show its status, and show or change its autoscaling settings."""

import json
import time
from typing import Annotated

import typer

from fast_truss.console import replicas, show_progress
from fast_truss.errors import printable
from fast_truss.options import AsJson, Where


def wake(where: Where, wait: Annotated[bool, typer.Option("--wait", help="Wait until it is ready.")] = False) -> None:
    """Start a replica before a request comes."""
    started = time.monotonic()
    with where.client() as client:
        client.wake(where.ask)
        if wait:
            show_progress(client, max(where.timeout - (time.monotonic() - started), 0.0), started)
            return print(f"Ready after {time.monotonic() - started:.1f} s.")
        now = client.status(where.ask)
    now.raise_if_failed()
    starting = "Baseten is starting a replica. `fast-truss status` shows when it is ready."
    print("The model is already awake." if now.ready else starting)


def status(where: Where, as_json: AsJson = False) -> None:
    """Show the status and the number of replicas."""
    now = where.client().status(where.ask)
    if as_json:
        told = {"status": now.status, "replicas": now.replicas, "deployment": now.deployment_id, "ready": now.ready}
        return print(json.dumps(told))
    print(f"{now.status}, {replicas(now.replicas)}{', ready' if now.ready else ''}")


def autoscaling(
    where: Where,
    min_replica: Annotated[int | None, typer.Option(help="Fewest replicas. 0 scales to zero.")] = None,
    max_replica: Annotated[int | None, typer.Option(help="Most replicas.")] = None,
    autoscaling_window: Annotated[int | None, typer.Option(help="Seconds of traffic to average.")] = None,
    scale_down_delay: Annotated[int | None, typer.Option(help="Seconds without traffic before a replica ends.")] = None,
    concurrency_target: Annotated[int | None, typer.Option(help="Requests at once per replica.")] = None,
    target_utilization_percentage: Annotated[
        int | None, typer.Option(help="Percent of the target at which to scale up.")
    ] = None,
    max_scale_down_rate: Annotated[
        int | None, typer.Option(help="Percent of excess replicas to end at once, 1 to 50.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show or change the autoscaling settings, then print the result."""
    given = locals()  # the options by their names, which are Baseten's
    changes = {name: value for name, value in given.items() if type(value) is int}
    found = where.client().autoscaling(where.ask, **changes)
    if as_json:
        return print(json.dumps({**found, **({"status": found.answered, "message": found.message} if changes else {})}))
    if found.answered:  # deprecated in the SDK, so it may go
        print(printable(f"{found.answered}: {found.message}"))
    for name, value in found.items():
        # The change is queued or was capped.
        asked = f" (you asked for {changes[name]})" if changes.get(name, value) != value else ""
        print(f"{name}: {value}{asked}")

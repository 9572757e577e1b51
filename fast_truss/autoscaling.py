"""Show the autoscaling settings, or change them."""

import json
from typing import Annotated

import typer

from fast_truss.options import AsJson, Where


def autoscaling(
    where: Where,
    min_replica: Annotated[int | None, typer.Option(help="0: scale to zero.")] = None,
    max_replica: Annotated[int | None, typer.Option(help="Never more replicas than these.")] = None,
    autoscaling_window: Annotated[int | None, typer.Option(help="Seconds of traffic to look at.")] = None,
    scale_down_delay: Annotated[int | None, typer.Option(help="Seconds without traffic before a replica ends.")] = None,
    concurrency_target: Annotated[int | None, typer.Option(help="Requests at once for one replica.")] = None,
    target_utilization_percentage: Annotated[
        int | None, typer.Option(help="Percent of --concurrency-target at which it scales.")
    ] = None,
    max_scale_down_rate: Annotated[int | None, typer.Option(help="Percent of the replicas, 1 to 50.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the autoscaling settings, or change them. Prints what Baseten answered, and the settings it has then."""
    given = locals()  # the options by their names, which are Baseten's
    changes = {name: value for name, value in given.items() if type(value) is int}
    found = where.client().autoscaling(where.ask, **changes)
    if as_json:
        return print(json.dumps({**found, **({"status": found.answered, "message": found.message} if changes else {})}))
    if changes:
        print(f"{found.answered}: {found.message}")
    for name, value in found.items():
        # It waits in a queue, or was capped.
        asked = f" (you asked for {changes[name]})" if changes.get(name, value) != value else ""
        print(f"{name}: {value}{asked}")

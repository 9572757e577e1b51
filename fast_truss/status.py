"""Wake a model, and show its status."""

import json
import time
from typing import Annotated

import typer

from fast_truss.console import replicas, show_progress
from fast_truss.options import AsJson, Where


def wake(where: Where, wait: Annotated[bool, typer.Option("--wait", help="Return when it is ready.")] = False) -> None:
    """Start a replica before somebody asks."""
    with where.client() as client:
        started = time.monotonic()
        client.wake(where.ask)
        if wait:
            show_progress(client, max(where.timeout - (time.monotonic() - started), 0.0), started)
            print(f"Ready after {time.monotonic() - started:.1f} s.")
            return
        now = client.status(where.ask)
        now.raise_if_failed()
        starting = "Baseten is starting a replica. `fast-truss status` shows when it is ready."
        print("The model is awake already." if now.ready else starting)


def status(
    where: Where,
    request: Annotated[str | None, typer.Option(help="The ID of an async request, as `generate` prints it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the status and the number of replicas, or the status of an async request."""
    client = where.client()
    if request is not None:
        found = client.submitted(request, where.ask)
        if as_json:
            return print(found.model_dump_json())
        print(f"{found.status} since {found.status_at}, webhook {found.webhook_status}")
        for error in found.errors:
            print(f"{error.code}: {error.message}")
        return
    now = client.status(where.ask)
    if as_json:
        told = {"status": now.status, "replicas": now.replicas, "deployment": now.deployment_id, "ready": now.ready}
        return print(json.dumps(told))
    print(f"{now.status}, {replicas(now.replicas)}{', ready' if now.ready else ''}")

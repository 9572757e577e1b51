"""Show the autoscaling settings, or change them."""

import json
from typing import Annotated, Any

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
    settings = {
        "min_replica": min_replica,
        "max_replica": max_replica,
        "autoscaling_window": autoscaling_window,
        "scale_down_delay": scale_down_delay,
        "concurrency_target": concurrency_target,
        "target_utilization_percentage": target_utilization_percentage,
        "max_scale_down_rate": max_scale_down_rate,
    }
    changes = {name: value for name, value in settings.items() if value is not None}
    with where.client() as client:
        told = _change(client, where, changes) if changes else {}
        found: dict[str, Any] = client.autoscaling(where.ask)
    if as_json:
        return print(json.dumps({**found, **told}))
    if told:
        print(f"{told['status']}: {told['message']}")
    for name, value in found.items():
        # QUEUED, or capped.
        asked = f" (asked for {changes[name]})" if changes.get(name, value) != value else ""
        print(f"{name}: {value}{asked}")


def _change(client: Any, where: Where, changes: dict[str, int]) -> dict[str, str]:
    """Return the status and the message of Baseten's answer."""
    from fast_truss.rules import checked_autoscaling

    request, target = checked_autoscaling(changes), client.target
    if not target.environment:
        names = {"model_id": target.model_id, "deployment_id": client.status(where.ask).deployment_id}
        method = "patch_models_deployments_autoscaling_settings"
    else:
        from baseten.client.managementapi import UpdateEnvironmentRequest

        # Those of its deployment alone would be gone with the next one that is promoted.
        request = UpdateEnvironmentRequest(autoscaling_settings=request)
        names, method = {"model_id": target.model_id, "env_name": target.environment}, "patch_models_environments"
    answer = client.change_management(method, where.ask, request=request, **names)
    # Of an environment they are deprecated, and may go.
    return {
        name: str(answer.__dict__.get(name) or default) for name, default in (("status", "ACCEPTED"), ("message", ""))
    }

"""Measure a whole cold start, up to the first image. No setting is changed: one replica ends, and the next starts."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss import Client, ClientError, InvalidInput, NotFound, charts, waterfall
from fast_truss.console import confirm, console, print_table, replicas, show_progress
from fast_truss.options import AsJson, Where, Yes
from fast_truss.policy import Deadline

PROMPT = "a lighthouse on a cliff at dawn"
# The record of a startup may come some seconds after it, and a replica may take its time to end.
RECORD_SECONDS, END_SECONDS = 20.0, 120.0
DAY_MS, MOST_DAYS = 24 * 3600 * 1000, 90


def coldstart(
    where: Where,
    replica: Annotated[str | None, typer.Option(help="The ID of the replica to end. Default: the newest.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw the chart into this file.")] = None,
    history: Annotated[bool, typer.Option("--history", help="Only show what Baseten recorded.")] = False,
    days: Annotated[int, typer.Option(min=1, max=MOST_DAYS, help="Of the history.")] = 7,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Wake a model that is at zero, or end one replica, and show the whole cold start. Changes no setting."""
    if png:
        charts.check(png)
    with where.client() as client:
        if client.local:
            raise InvalidInput("coldstart measures a deployment on Baseten: leave out --url, or use `make image`.")
        if history:
            return _show_history(client, days, as_json)
        measured = measure(client, where.timeout, replica, yes)
    bars = measured.bars()
    if as_json:
        phases = [{**vars(bar), "start": round(bar.start, 3), "seconds": round(bar.seconds, 3)} for bar in bars]
        print(json.dumps({"ready": measured.ready, "image": measured.image, "phases": phases}))
    else:
        waterfall.show(bars)
        print(f"ready after {measured.ready:.1f} s, first image after {measured.image:.1f} s")
    for sentence in measured.missing():
        console().print(sentence)
    if png:
        waterfall.save(bars, f"Cold start of {client.target}: ready after {measured.ready:.1f} s", png)
        console().print(f"Chart: {png}", markup=False)


def measure(client: Client, timeout: float, replica: str | None, yes: bool) -> waterfall.ColdStart:
    """End one replica, or find the model at zero, wake, and wait for the first image. Raises ClientError."""
    before = client.status(min(timeout, 60))
    if before.ready:
        # Of several the others go on serving.
        if before.replicas == 1 and _serves_production(client, before.deployment_id):
            confirm("This ends the only replica of production: requests wait until the next one is ready.", yes)
    elif before.status != "SCALED_TO_ZERO":
        raise InvalidInput(f"The model is {before.status}: measure when it is ready, or at zero.")
    deadline, seen = Deadline(timeout), []  # whoever thinks before the answer loses nothing of it
    if before.ready:
        ended = _end_replica(client, before.deployment_id, replica)
        console().print(f"Replica {ended} ends: {replicas(before.replicas - 1)} left.", markup=False)
    began, started = time.time(), time.monotonic()
    if before.ready:
        left = min(deadline.left(), END_SECONDS)
        seen = show_progress(client, left, started, lambda now: not now.ready or now.replicas < before.replicas)
    client.wake(min(deadline.left(), 60))  # the platform may leave it at zero
    wanted = max(before.replicas, 1)
    seen += show_progress(client, deadline.left(), started, lambda now: now.ready and now.replicas >= wanted)
    ready = time.monotonic() - started
    with console().status("generating the first image, then asking for Baseten's record of this startup"):
        answer = client.generate(PROMPT, timeout=deadline.left())
        image = time.monotonic() - started
        attempt = _recorded(client, seen[-1][1].deployment_id, began)
    server = (answer.get("timings") or {}).get("cold_start") or {}
    return waterfall.ColdStart(began, [(at, status.status) for at, status in seen], ready, image, server, attempt)


def _serves_production(client: Client, deployment_id: str) -> bool:
    if client.target.environment:
        return client.target.is_production
    names: dict[str, Any] = {"model_id": client.target.model_id, "deployment_id": deployment_id}
    return bool(client.ask_management("get_models_deployments_deployment_id", **names).is_production)


def _end_replica(client: Client, deployment_id: str, replica: str | None) -> str:
    """Return the ID of the replica that was ended. Raises ClientError if none was."""
    candidates = [replica] if replica else []
    if not replica:
        # Baseten has no list of replicas: those that started last, of which some may have ended since.
        now = int(time.time() * 1000)
        found = client.startups(deployment_id, start_epoch_millis=now - MOST_DAYS * DAY_MS, end_epoch_millis=now)
        candidates = [each.replica_id for each in found or [] if each.outcome == "SUCCESS" and each.replica_id][:10]
    for candidate in candidates:
        names: dict[str, Any] = {"model_id": client.target.model_id, "deployment_id": deployment_id}
        try:
            client.change_management("delete_models_deployments_replicas", replica_id=candidate, **names)
            return candidate
        except NotFound:
            continue
    sentence = f"There is no replica {replica}" if replica else "Baseten's record of startups names no running replica"
    raise ClientError(f"{sentence}: give the ID of one, which its log on Baseten shows, with --replica.")


def _recorded(client: Client, deployment_id: str, began: float) -> Any:
    """Return the attempt that belongs to this start, or None."""
    deadline, since = Deadline(RECORD_SECONDS), int(began * 1000) - 5000  # two clocks
    while deadline.left() > 0:
        window = {"start_epoch_millis": since, "end_epoch_millis": int(time.time() * 1000) + 60_000, "limit": 10}
        try:
            found = client.startups(deployment_id, RECORD_SECONDS, **window)
        except ClientError:
            found = None
        if found is None:
            return None  # what was measured is shown without it
        if finished := [attempt for attempt in found if attempt.ready_at_epoch_millis is not None]:
            return min(finished, key=lambda attempt: attempt.started_at_epoch_millis)
        time.sleep(2)
    return None


def _show_history(client: Client, days: int, as_json: bool) -> None:
    """Show p50, p90 and p99 of each phase, out of Baseten's record."""
    now = int(time.time() * 1000)
    summary = client.startups_summary(start_epoch_millis=now - days * DAY_MS, end_epoch_millis=now)
    if summary is None:
        raise ClientError("This workspace does not have Baseten's record of startups (a beta).")
    if as_json:
        return print(summary.model_dump_json())
    found = [(each.phase, each.duration_ms) for each in summary.phase_duration_ms]
    rows = []
    for name, each in [*found, ("whole", summary.total_duration_ms)]:
        points = ["" if point is None else f"{point / 1000:.1f}" for point in (each.p50_ms, each.p90_ms, each.p99_ms)]
        rows.append([name, str(each.sample_count), *points])
    print_table(f"Startups of the last {days} days, in seconds", ("phase", "startups", "p50", "p90", "p99"), rows)

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
DAY_MS = 24 * 3600 * 1000
MOST_DAYS = 90


def coldstart(
    where: Where,
    replica: Annotated[
        str | None, typer.Option(help="The ID of the replica to end. Default: the newest in Baseten's record.")
    ] = None,
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
            raise InvalidInput(
                "coldstart measures a deployment on Baseten: leave out --url. `make image` measures here."
            )
        if history:
            return _show_history(client, days, as_json)
        measured = _measure(client, where, replica, yes)
    bars = measured.bars()
    if as_json:
        phases = [{**vars(bar), "start": round(bar.start, 3), "seconds": round(bar.seconds, 3)} for bar in bars]
        print(json.dumps({"ready": measured.ready, "image": measured.image, "phases": phases}))
    else:
        from rich.console import Console

        waterfall.show(bars, Console(highlight=False))
        print(f"ready after {measured.ready:.1f} s, first image after {measured.image:.1f} s")
    for sentence in measured.missing():
        console().print(sentence)
    if png:
        waterfall.save(bars, f"Cold start of {client.target}: ready after {measured.ready:.1f} s", png)
        console().print(f"Chart: {png}", markup=False)


def _measure(client: Client, where: Where, replica: str | None, yes: bool) -> waterfall.ColdStart:
    before = client.status(where.ask)
    if before.ready:
        # Of several the others go on serving.
        if before.replicas == 1 and _serves_production(client, before.deployment_id):
            sentence = "This ends the only replica of production: requests wait until the next one is ready."
            confirm(sentence, yes)
    elif before.status != "SCALED_TO_ZERO":
        raise InvalidInput(f"The model is {before.status}: measure when it is ready, or at zero.")
    deadline = Deadline(where.timeout)  # whoever thinks before the answer loses nothing of it
    began, started = time.time(), time.monotonic()
    if before.ready:
        ended = _end_replica(client, before.deployment_id, replica, where.ask)
        console().print(f"Replica {ended} ends. {replicas(before.replicas - 1).capitalize()} left.", markup=False)
        began, started = time.time(), time.monotonic()
        gone = show_progress(
            client,
            min(deadline.left(), END_SECONDS),
            started,
            lambda now: now.status != before.status or now.replicas < before.replicas,
        )
    else:
        gone = []
    client.wake(min(deadline.left(), where.ask))  # the platform may leave it at zero
    at_least = max(before.replicas, 1)
    seen = show_progress(client, deadline.left(), started, lambda now: now.ready and now.replicas >= at_least)
    ready = time.monotonic() - started
    with console().status("generating the first image"):
        answer = client.generate(PROMPT, timeout=deadline.left())
    image = time.monotonic() - started
    with console().status("asking for Baseten's record of this startup"):
        attempt = _recorded(client, seen[-1][1].deployment_id, began)
    server = (answer.get("timings") or {}).get("cold_start") or {}
    phases = [(at, status.status) for at, status in gone + seen]
    return waterfall.ColdStart(began, phases, ready, image, server, attempt)


def _serves_production(client: Client, deployment_id: str) -> bool:
    target = client.target
    if target.environment:
        return target.is_production
    names: dict[str, Any] = {"model_id": target.model_id, "deployment_id": deployment_id}
    return bool(client.ask_management("get_models_deployments_deployment_id", **names).is_production)


def _end_replica(client: Client, deployment_id: str, replica: str | None, timeout: float) -> str:
    """Return the ID of the replica that was ended. Raises ClientError if none was."""
    if replica:
        candidates = [replica]
    else:
        # Baseten has no list of replicas: those that started last, of which some may have ended since.
        now = int(time.time() * 1000)
        found = client.startups(
            deployment_id, timeout, start_epoch_millis=now - MOST_DAYS * DAY_MS, end_epoch_millis=now + 60_000
        )
        started = [each.replica_id for each in found or [] if each.outcome == "SUCCESS" and each.replica_id]
        candidates = list(dict.fromkeys(started))[:10]
    for candidate in candidates:
        try:
            names = {"model_id": client.target.model_id, "deployment_id": deployment_id, "replica_id": candidate}
            client.change_management("delete_models_deployments_replicas", timeout, **names)
            return candidate
        except NotFound:
            continue
    sentence = f"There is no replica {replica}" if replica else "Baseten's record of startups names no running replica"
    raise ClientError(f"{sentence}: give the ID of one, which its log on Baseten shows, with --replica.")


def _recorded(client: Client, deployment_id: str, began: float) -> Any:
    """Return the attempt that belongs to this start, or None."""
    deadline = time.monotonic() + RECORD_SECONDS
    since = int(began * 1000) - 5000  # two clocks
    while True:
        until = int(time.time() * 1000) + 60_000
        try:
            found = client.startups(
                deployment_id, RECORD_SECONDS, start_epoch_millis=since, end_epoch_millis=until, limit=10
            )
        except ClientError:
            return None  # what was measured is shown without it
        if found is None or time.monotonic() > deadline:
            return None
        if finished := [attempt for attempt in found if attempt.ready_at_epoch_millis is not None]:
            return min(finished, key=lambda attempt: attempt.started_at_epoch_millis)
        time.sleep(2)


def _show_history(client: Client, days: int, as_json: bool) -> None:
    """Show p50, p90 and p99 of each phase, out of Baseten's record."""
    now = int(time.time() * 1000)
    summary = client.startups_summary(start_epoch_millis=now - days * DAY_MS, end_epoch_millis=now)
    if summary is None:
        raise ClientError("This workspace does not have Baseten's record of startups (a beta).")
    if as_json:
        return print(summary.model_dump_json())
    rows = []
    for name, found in [
        *((each.phase, each.duration_ms) for each in summary.phase_duration_ms),
        ("whole", summary.total_duration_ms),
    ]:
        points = [found.p50_ms, found.p90_ms, found.p99_ms]
        rows.append(
            [name, str(found.sample_count), *("" if point is None else f"{point / 1000:.1f}" for point in points)]
        )
    print_table(f"Startups of the last {days} days, in seconds", ("phase", "startups", "p50", "p90", "p99"), rows)

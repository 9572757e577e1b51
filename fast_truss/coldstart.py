"""Measure a whole cold start, up to the first image: end one replica and follow the next. Changes no settings."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss import Client, ClientError, InvalidInput, NotFound, Status, fields, waterfall
from fast_truss.console import console, replicas, show_progress
from fast_truss.options import AsJson, Where
from fast_truss.policy import Deadline

# How long to wait for a replica to end, and for Baseten's record of a startup to appear.
END_SECONDS, RECORD_SECONDS = 120.0, 20.0
DAY = 24 * 3600.0
ENDS = "This ends the only replica: requests wait until the next one is ready."
NO_RECORD = "Baseten has no record of this startup (a beta): the phases come from the status, polled once a second."
NO_SERVER = "The server's own phases are missing: another request received the replica's first answer."


def coldstart(
    where: Where,
    replica: Annotated[str | None, typer.Option(help="ID of the replica to end. Default: the newest.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also save the chart as a PNG.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Wake a model at zero, or end one replica, and show the whole cold start by phase. Changes no settings."""
    if png:
        waterfall.check(png)
    with where.client() as client:
        if client.local:
            raise InvalidInput("coldstart measures a deployment on Baseten: leave out --url, or run `make image`.")
        before, ended = client.status(where.ask), None
        if before.ready:
            ended = _end_replica(client, before, replica, yes)
        elif before.status != "SCALED_TO_ZERO":
            raise InvalidInput(f"The model is {before.status}: wait until it is ready or scaled to zero.")
        bars = _follow(client, before, ended, where.timeout)
    ready, image = bars[-1].start, bars[-1].start + bars[-1].seconds
    if as_json:
        print(json.dumps({"ready": ready, "image": image, "phases": [vars(bar) for bar in bars]}))
    else:
        waterfall.show(bars)
        print(f"ready after {ready:.1f} s, first image after {image:.1f} s")
    if png:
        waterfall.save(bars, f"Cold start of {client.target}: ready after {ready:.1f} s", png)


def _end_replica(client: Client, before: Status, replica: str | None, yes: bool) -> str:
    """End a replica and return its ID. Raises ClientError if there is none to end."""
    if before.replicas == 1 and not yes:
        if not sys.stdin.isatty():
            raise InvalidInput(f"{ENDS} Add --yes to confirm.")
        typer.confirm(f"{ENDS} Continue?", abort=True, err=True)
    candidates = [replica]
    if not replica:
        # Baseten lists no replicas, so try those that started last: some may have ended since.
        found = client.startups(before.deployment_id, **_window(time.time() - 89 * DAY)) or []
        candidates = [each.replica_id for each in found if each.outcome == "SUCCESS" and each.replica_id][:10]
    names: dict[str, Any] = {"model_id": client.target.model_id, "deployment_id": before.deployment_id}
    for candidate in candidates:
        try:
            client.change_management("delete_models_deployments_replicas", replica_id=candidate, **names)
        except NotFound:
            continue
        console().print(f"Replica {candidate} ends: {replicas(before.replicas - 1)} left.", markup=False)
        return str(candidate)
    sentence = f"There is no replica {replica}" if replica else "Baseten's record of startups names no running replica"
    raise ClientError(f"{sentence}: set --replica to an ID from the log on Baseten.")


def _follow(client: Client, before: Status, ended: str | None, timeout: float) -> list[waterfall.Bar]:
    """Wait until the replica is gone, wake the model, and generate the first image."""
    deadline, began, started, seen = Deadline(timeout), time.time(), time.monotonic(), []
    if ended:
        left = min(timeout, END_SECONDS)
        seen = show_progress(client, left, started, lambda now: not now.ready or now.replicas < before.replicas)
    client.wake(min(deadline.left(), 60))  # the platform may not replace it by itself
    wanted = max(before.replicas, 1)
    seen += show_progress(client, deadline.left(), started, lambda now: now.ready and now.replicas >= wanted)
    ready = time.monotonic() - started
    with console().status("generating the first image, then asking for Baseten's record of this startup"):
        request = fields.example(client, deadline.left())
        asked = time.monotonic()
        answer = client.generate(**request, timeout=deadline.left())
        image = ready + time.monotonic() - asked
        record = _recorded(client, before.deployment_id, ended, began)
    server = (answer.get("timings") or {}).get("cold_start") or {}
    if not record:
        console().print(NO_RECORD)
    if not server:
        console().print(NO_SERVER)
    return waterfall.bars_of(record, seen, ready, image, server)


def _recorded(client: Client, deployment_id: str, ended: str | None, began: float) -> list[waterfall.Bar]:
    """Return the bars of Baseten's record of this startup, or none if there is no record."""
    deadline = Deadline(RECORD_SECONDS)
    with contextlib.suppress(ClientError):  # a missing field raises one too
        while deadline.left() > 0:
            found = client.startups(deployment_id, RECORD_SECONDS, **_window(began - 5))
            done = [each for each in found or [] if each.ready_at_epoch_millis is not None and each.replica_id != ended]
            if done:
                return waterfall.recorded(min(done, key=lambda attempt: attempt.started_at_epoch_millis), began)
            if found is None:
                break
            time.sleep(2)
    return []


def _window(since: float) -> dict[str, int]:
    # Baseten's clock may be ahead of this one.
    return {"start_epoch_millis": int(since * 1000), "end_epoch_millis": int(time.time() * 1000) + 60_000}

"""Measure a whole cold start: scale to zero, wake, and wait for the first image. The settings are put back."""

import contextlib
import fcntl
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fast_truss.api import ASK_SECONDS, Client
from fast_truss.console import console, show_progress
from fast_truss.errors import ClientError, InvalidInput
from fast_truss.policy import Deadline
from fast_truss.restore import command_for, put_back_afterwards
from fast_truss.target import Target
from fast_truss.waterfall import ColdStart, check_png, save, show

CHANGED = ("min_replica", "scale_down_delay")
PROMPT = "a lighthouse on a cliff at dawn"
# The record of a startup may come some seconds after it.
RECORD_SECONDS = 20.0
DAY_MS = 24 * 3600 * 1000


def measure(
    client: Client, timeout: float, yes: bool, after_delay: int | None, png: Path | None, as_json: bool
) -> None:
    """after_delay: seconds of scale_down_delay to leave behind; None: what it is now."""
    if png:
        check_png(png)
    target = client.target
    with _lock(target) as lock, _signals_end_in_finally():
        before = _settings_before(client, after_delay)
        console().print(f"Before: {', '.join(f'{name} {value}' for name, value in before.items())}.")
        console().print(f"To put that back by hand: {command_for(target, before)}", soft_wrap=True)
        if _serves_production(client):
            _ask("This scales production to zero: who asks now has to wait.", yes)
        deadline = Deadline(timeout)  # whoever thinks before the answer loses nothing of it
        with put_back_afterwards(target, before, lock) as put_back:
            client.autoscaling(min(timeout, ASK_SECONDS), min_replica=0, scale_down_delay=0)
            started = time.monotonic()
            show_progress(client, deadline.left(), started, lambda status: status.status == "SCALED_TO_ZERO")
            measured = _wake(client, deadline, put_back)
    _tell(measured, str(target), png, as_json)


def history(client: Client, days: int, as_json: bool) -> None:
    """Show p50, p90 and p99 of each phase, out of Baseten's record."""
    now = int(time.time() * 1000)
    summary = client.startups_summary(start_epoch_millis=now - days * DAY_MS, end_epoch_millis=now)
    if summary is None:
        raise ClientError("Baseten's record of startups (a beta) is not there for this workspace.")
    if as_json:
        print(summary.model_dump_json())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("phase", "startups", "p50", "p90", "p99", title=f"Startups of the last {days} days, in seconds")
    rows = [(phase.phase, phase.duration_ms) for phase in summary.phase_duration_ms]
    for name, found in [*rows, ("whole", summary.total_duration_ms)]:
        points = [found.p50_ms, found.p90_ms, found.p99_ms]
        shown = ["" if point is None else f"{point / 1000:.1f}" for point in points]
        table.add_row(name, str(found.sample_count), *shown)
    Console().print(table)


def _wake(client: Client, deadline: Deadline, put_back: Any) -> ColdStart:
    woken_at, started = time.time(), time.monotonic()
    client.wake(min(deadline.left(), ASK_SECONDS))
    # At once: with a delay of 0 the replica would end again, and with min_replica it starts by itself.
    put_back()
    seen = show_progress(client, deadline.left(), started)
    ready = time.monotonic() - started
    with console().status("generating the first image"):
        answer = client.generate(PROMPT, timeout=deadline.left())
    image = time.monotonic() - started
    with console().status("asking for Baseten's record of this startup"):
        attempt = _recorded(client, seen[-1][1].deployment_id, woken_at)
    server = (answer.get("timings") or {}).get("cold_start") or {}
    return ColdStart(woken_at, [(at, status.status) for at, status in seen], ready, image, server, attempt)


def _recorded(client: Client, deployment_id: str, woken_at: float) -> Any:
    """Return the attempt that began with this wake, or None."""
    deadline = time.monotonic() + RECORD_SECONDS
    began = int(woken_at * 1000) - 5000  # two clocks
    while True:
        now = int(time.time() * 1000) + 60_000
        try:
            found = client.startups(
                deployment_id, RECORD_SECONDS, start_epoch_millis=began, end_epoch_millis=now, limit=10
            )
        except ClientError:
            return None  # what was measured is shown without it
        if found is None or time.monotonic() > deadline:
            return None
        if finished := [attempt for attempt in found if attempt.ready_at_epoch_millis is not None]:
            return min(finished, key=lambda attempt: attempt.started_at_epoch_millis)
        time.sleep(2)


def _tell(measured: ColdStart, title: str, png: Path | None, as_json: bool) -> None:
    bars = measured.bars()
    if as_json:
        rounded = [[bar.name, bar.level, round(bar.start, 3), round(bar.seconds, 3)] for bar in bars]
        names = ("name", "level", "start", "seconds")
        phases = [dict(zip(names, bar, strict=True)) for bar in rounded]
        print(json.dumps({"ready": measured.ready, "image": measured.image, "phases": phases}))
    else:
        from rich.console import Console

        show(bars, Console(highlight=False))
        print(f"wake to ready {measured.ready:.1f} s, first image after {measured.image:.1f} s")
    for sentence in measured.missing():
        console().print(sentence)
    if png:
        save(bars, f"Cold start of {title}: ready after {measured.ready:.1f} s", png)
        console().print(f"Chart: {png}")


def _check_schedules(client: Client) -> None:
    """Raise InvalidInput while a schedule applies: the settings are its own, and may not be put back as others."""
    if not client.target.environment:
        return
    schedules = client.environment().autoscaling_schedules
    applied = schedules.applied_state.schedule_id if schedules and schedules.applied_state else None
    if applied is None:
        return
    names = [each.name for each in schedules.schedules if not isinstance(each, dict) and each.id == applied]
    raise InvalidInput(
        f"The schedule {(names or [applied])[0]!r} applies to {client.target} now, and it sets the replicas: measure "
        "outside its window, or delete it first."
    )


def _settings_before(client: Client, after_delay: int | None) -> dict[str, int]:
    _check_schedules(client)
    now = client.autoscaling()
    unknown = [name for name in CHANGED if name not in now]
    if unknown:
        raise ClientError(f"Baseten does not tell {' and '.join(unknown)}, so it could not be put back: nothing done.")
    before = {name: now[name] for name in CHANGED}
    if after_delay is not None:
        return {**before, "scale_down_delay": after_delay}
    if before["scale_down_delay"] == 0:
        repair = command_for(client.target, {"scale_down_delay": 900})
        raise InvalidInput(
            "scale_down_delay is 0 now, as a coldstart leaves it that runs elsewhere or was killed. Repair it first: "
            f"{repair}, or say with --after-delay what it shall be afterwards."
        )
    return before


def _serves_production(client: Client) -> bool:
    target = client.target
    if target.kind != "deployment":
        return target.is_production
    names: dict[str, Any] = {"model_id": target.model_id, "deployment_id": target.name}
    return bool(client.ask_management("get_models_deployments_deployment_id", **names).is_production)


def _ask(sentence: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidInput(f"{sentence} If that is meant, give --yes.")
    import typer

    typer.confirm(f"{sentence} Go on?", abort=True, err=True)


@contextlib.contextmanager
def _lock(target: Target) -> Iterator[int]:
    """Hold a lock against a second coldstart of this target. It ends with the last process that has it."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", f"{target.model_id}-{target.kind}-{target.name}")
    path = Path(tempfile.gettempdir()) / f"coldstart-{os.getuid()}-{name}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(
                f"Another coldstart of {target} is under way here: wait until it has put the settings back."
            ) from None
        yield lock
    finally:
        os.close(lock)


@contextlib.contextmanager
def _signals_end_in_finally() -> Iterator[None]:
    def end(number: int, _: Any) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

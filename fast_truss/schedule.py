"""Baseten's own autoscaling schedules: a replica is there while people are, and nobody has to wake it."""

import dataclasses
import datetime
import re
import zoneinfo
from typing import Any

from fast_truss.errors import ClientError, InvalidInput, KeyRefused, NotFound, RequestRefused

DAYS = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")
WORKFLOW = ".github/workflows/wake.yml"
NOT_THERE = f"This workspace does not have Baseten's schedules (a beta) yet: {WORKFLOW} wakes on a schedule instead."
# What a schedule leaves to the environment. Baseten asks for every name; null follows the environment.
FOLLOWING = (
    "autoscaling_window",
    "scale_down_delay",
    "concurrency_target",
    "target_utilization_percentage",
    "target_in_flight_tokens",
    "max_scale_down_rate",
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the options say. on: a date for one window, or None for one on each of weekdays."""

    name: str
    weekdays: str
    on: str | None
    start: str
    end: str
    timezone: str | None
    min_replica: int
    max_replica: int | None


def weekdays_of(text: str) -> list[str]:
    """Return the days that `mon-fri`, `mon,wed` or `daily` means, Monday first. Raises InvalidInput."""
    if text.strip().lower() in ("daily", "all"):
        return list(DAYS)
    found = set()
    for part in text.lower().split(","):
        ends = [_day(name.strip(), text) for name in part.split("-")]
        if len(ends) > 2:
            raise InvalidInput(f"--weekdays is {text!r}: use days such as mon-fri or mon,wed,sat.")
        first, last = ends[0], ends[-1]
        length = (last - first) % 7
        found |= {(first + offset) % 7 for offset in range(length + 1)}
    return [DAYS[day] for day in sorted(found)]


def time_of(option: str, text: str) -> tuple[int, int]:
    """Return the hour and the minute of `08:45`. Raises InvalidInput."""
    found = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", text, re.ASCII)
    if not found:
        raise InvalidInput(f"{option} is {text!r}: use a time from 00:00 to 23:59, such as 08:45.")
    return int(found[1]), int(found[2])


def settings_of(wanted: Wanted, environment: Any, now: datetime.datetime) -> Any:
    """Return the SDK's UpdateAutoscalingScheduleSettings: all is checked here. Raises InvalidInput.

    environment: the SDK's. A schedule of the same name is replaced. now: an aware time.
    """
    from baseten.client.managementapi import UpdateAutoscalingScheduleSettings

    there = environment.autoscaling_schedules
    known = there.timezone if there and there.schedules else None
    timezone = wanted.timezone or known
    if timezone is None:
        raise InvalidInput("--timezone is missing: use a name such as Europe/Berlin or America/New_York.")
    zone = zone_of(timezone)
    if known and known != timezone:
        raise InvalidInput(
            f"--timezone is {timezone!r}, and the schedules that are there use {known}: an environment has one for all."
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", wanted.name):
        raise InvalidInput(f"--name is {wanted.name!r}: use 1 to 64 letters, digits, blanks, '.', '_' and '-'.")
    start, end = time_of("--from", wanted.start), time_of("--to", wanted.end)
    if end <= start:
        raise InvalidInput(
            f"--to is {wanted.end}: use a time after --from, {wanted.start}. For a night set two schedules, with "
            "a --name each: until 23:59 and from 00:00."
        )
    schedule = {
        "name": wanted.name,
        "enabled": True,
        "autoscaling_settings": _replicas(wanted, environment),
        **(_window(wanted.on, start, end, zone, now) if wanted.on else _daily(wanted.weekdays, start, end)),
    }
    same = [each for each in _schedules(environment) if each.name == wanted.name]
    if same:
        schedule["id"] = same[0].id
    return UpdateAutoscalingScheduleSettings(timezone=timezone, schedules=[schedule])


def deletion_of(names: list[str], environment: Any) -> Any:
    """Return the SDK's settings that delete the schedules of these names or ids, or all. Raises InvalidInput."""
    from baseten.client.managementapi import UpdateAutoscalingScheduleSettings

    there = _schedules(environment)
    if names == ["all"]:
        return UpdateAutoscalingScheduleSettings(delete_schedules=[each.id for each in there])
    gone = []
    for name in names:
        same = [each.id for each in there if name in (each.name, each.id)]
        if not same:
            known = ", ".join(each.name for each in there) or "none"
            raise InvalidInput(f"--delete is {name!r}, and there is no such schedule: there is {known}.")
        gone += same
    return UpdateAutoscalingScheduleSettings(delete_schedules=gone)


def change(client: Any, settings: Any, environment: Any, timeout: float) -> Any:
    """Send the settings. Returns the environment after it. Raises ClientError with NOT_THERE if that is why."""
    try:
        after = client.change_schedules(settings, timeout)
    except (NotFound, RequestRefused, KeyRefused) as error:
        # 403: the key is good, as it was just before, and what is off is refused.
        if environment.autoscaling_schedules is None and error.status != 401:
            raise ClientError(f"{NOT_THERE} ({error})") from None
        raise
    if after.autoscaling_schedules is None:
        raise ClientError(NOT_THERE)
    return after


def tell_replaced(settings: Any, environment: Any) -> None:
    """Say which schedule gives way, as it was: it may only have had the usual name, too."""
    from fast_truss.console import console

    ids = {each.id for each in settings.schedules}
    for each in _schedules(environment):
        if each.id in ids:
            was = _when(each, environment.autoscaling_schedules.timezone)
            console().print(f"This replaces {each.name}, which was {was}. Another --name adds one.", markup=False)


def show(environment: Any) -> None:
    """Print the schedules, and which of them applies now."""
    if environment.autoscaling_schedules is None:
        print(NOT_THERE)
        return
    there = _schedules(environment)
    if not there:
        print(f"{environment.name} has no schedules.")
        return
    from rich.console import Console
    from rich.table import Table

    state = environment.autoscaling_schedules.applied_state
    zone = environment.autoscaling_schedules.timezone
    table = Table(
        "name", "when", "replicas", "", title=f"Schedules of {environment.name}, {zone}", title_justify="left"
    )
    for each in there:
        replicas = f"{each.autoscaling_settings.min_replica} to {each.autoscaling_settings.max_replica}"
        marks = "now" if state and state.schedule_id == each.id else "" if each.enabled else "off"
        table.add_row(each.name, _when(each, zone), replicas, marks)
    Console(highlight=False).print(table)


def _schedules(environment: Any) -> list[Any]:
    there = environment.autoscaling_schedules
    # One of a cadence that this SDK does not know is a plain dict.
    return [each for each in there.schedules if not isinstance(each, dict)] if there else []


def _when(schedule: Any, timezone: str | None) -> str:
    if schedule.cadence == "ONE_TIME":
        zone = zoneinfo.ZoneInfo(timezone) if timezone else datetime.UTC
        start, end = schedule.start_at.astimezone(zone), schedule.end_at.astimezone(zone)
        return f"{start:%Y-%m-%d %H:%M} to {end:%H:%M}"
    days = ", ".join(day.title()[:3] for day in schedule.weekdays)
    hours = [f"{hour:02}:" if hour is not None else "every hour :" for hour in (schedule.start_hour, schedule.end_hour)]
    return f"{days} {hours[0]}{schedule.start_minute:02} to {hours[1]}{schedule.end_minute:02}"


def _day(name: str, text: str) -> int:
    for number, day in enumerate(DAYS):
        if len(name) >= 3 and day.lower().startswith(name):
            return number
    raise InvalidInput(f"--weekdays is {text!r}: use days such as mon-fri or mon,wed,sat.")


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """Return the time zone of an IANA name. Raises InvalidInput."""
    # "localtime" and the like are files, too, but no names of IANA.
    if name in zoneinfo.available_timezones():
        return zoneinfo.ZoneInfo(name)
    raise InvalidInput(f"--timezone is {name!r}: use an IANA name, such as Europe/Berlin or America/New_York.")


def _replicas(wanted: Wanted, environment: Any) -> dict[str, Any]:
    from fast_truss.rules import BOUNDS

    most = wanted.max_replica
    if most is None:
        most = max(environment.autoscaling_settings.max_replica, wanted.min_replica)
    for name, value in (("min_replica", wanted.min_replica), ("max_replica", most)):
        low, high = BOUNDS[name]
        if not low <= value <= high:
            raise InvalidInput(f"--{name.replace('_', '-')} is {value}: use a whole number from {low} to {high}.")
    if wanted.min_replica > most:
        raise InvalidInput(f"--min-replica is {wanted.min_replica}: use at most --max-replica, which is {most}.")
    return {"min_replica": wanted.min_replica, "max_replica": most, **dict.fromkeys(FOLLOWING)}


def _daily(weekdays: str, start: tuple[int, int], end: tuple[int, int]) -> dict[str, Any]:
    return {
        "cadence": "DAILY",
        "weekdays": weekdays_of(weekdays),
        "start_hour": start[0],
        "start_minute": start[1],
        "end_hour": end[0],
        "end_minute": end[1],
    }


def _window(
    on: str, start: tuple[int, int], end: tuple[int, int], zone: zoneinfo.ZoneInfo, now: datetime.datetime
) -> dict[str, Any]:
    try:
        date = datetime.date.fromisoformat(on)
    except ValueError:
        raise InvalidInput(f"--on is {on!r}: use a date such as 2027-03-31.") from None
    start_at, end_at = (datetime.datetime.combine(date, datetime.time(*moment), zone) for moment in (start, end))
    if start_at <= now:
        raise InvalidInput(f"--on is {on}: {start_at:%Y-%m-%d %H:%M} has passed in {zone.key}, use a later time.")
    for option, moment in (("--from", start_at), ("--to", end_at)):
        # Where clocks go forward, the time that they leave out has the earlier offset only at first sight.
        if _offset(moment.replace(fold=1)) > _offset(moment):
            raise InvalidInput(
                f"{option} is {moment:%H:%M}: there is no such time on {on} in {zone.key}, as clocks go forward over "
                "it. Use another one."
            )
    return {"cadence": "ONE_TIME", "start_at": start_at, "end_at": end_at}


def _offset(moment: datetime.datetime) -> datetime.timedelta:
    return moment.utcoffset() or datetime.timedelta()

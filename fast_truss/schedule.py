"""Baseten's own autoscaling schedules: a replica is there while people are, and nobody has to wake it."""

import datetime
import zoneinfo
from typing import Annotated, Any

import typer

from fast_truss import ClientError, InvalidInput, KeyRefused, NotFound, RequestRefused
from fast_truss.console import console, print_table
from fast_truss.options import AsJson, Where

DAYS = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")
NOT_THERE = (
    "This workspace does not have Baseten's schedules (a beta) yet: "
    ".github/workflows/wake.yml wakes on a schedule instead."
)
# What a schedule leaves to the environment. Baseten asks for every name; null follows the environment.
FOLLOWING = (
    "autoscaling_window",
    "scale_down_delay",
    "concurrency_target",
    "target_utilization_percentage",
    "target_in_flight_tokens",
    "max_scale_down_rate",
)


def schedule(
    where: Where,
    name: Annotated[
        str | None,
        typer.Option(help='Replaces one of the same name. Default: "office hours", or "window" and the date.'),
    ] = None,
    weekdays: Annotated[str, typer.Option(help="Such as mon-fri, mon,wed or daily.")] = "mon-fri",
    on: Annotated[
        datetime.datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="One window only, on this date."),
    ] = None,
    start: Annotated[
        datetime.datetime | None, typer.Option("--from", formats=["%H:%M"], metavar="HH:MM", help="Such as 08:45.")
    ] = None,
    end: Annotated[
        datetime.datetime | None, typer.Option("--to", formats=["%H:%M"], metavar="HH:MM", help="Such as 18:00.")
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="Such as Europe/Berlin. One for all schedules.")] = None,
    min_replica: Annotated[int, typer.Option(min=0, help="Replicas that are there in that time.")] = 1,
    max_replica: Annotated[int | None, typer.Option(min=1, help="Default: as in the environment.")] = None,
    delete: Annotated[list[str] | None, typer.Option(help="A name or an ID, or all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show, set and delete the times at which replicas are kept ready: Baseten's own schedules."""
    if (start is None) != (end is None):
        raise InvalidInput("--from and --to belong together: give both, or none to show the schedules.")
    if delete and start:
        raise InvalidInput("--delete and --from exclude each other: give one of them.")
    for option, value in (("--name", name), ("--on", on), ("--timezone", timezone), ("--max-replica", max_replica)):
        if value is not None and start is None:
            raise InvalidInput(f"{option} belongs to a schedule to set: give --from and --to, too.")
    with where.client() as client:
        environment = client.environment(where.ask)
        request = None
        if delete:
            request = deletion_of(delete, environment)
        elif start and end:
            when = _window(on, start, end) if on else _daily(weekdays, start, end)
            named = name or (f"window {on:%Y-%m-%d}" if on else "office hours")
            request = request_of(named, when, timezone, min_replica, max_replica, environment)
        if request:
            environment = change(client, request, environment, where.ask)
    if as_json:
        found = environment.autoscaling_schedules
        return print(found.model_dump_json() if found else "null")
    show(environment)


def weekdays_of(text: str) -> list[str]:
    """Return the days that `mon-fri`, `mon,wed` or `daily` means, Monday first. Raises InvalidInput."""
    found: set[int] = set()
    for part in ("mon-sun" if text.strip().lower() in ("daily", "all") else text).lower().split(","):
        ends = [
            number
            for each in part.split("-")
            for number, day in enumerate(DAYS)
            if len(each.strip()) >= 3 and day.lower().startswith(each.strip())
        ]
        if len(ends) != part.count("-") + 1 or len(ends) > 2:
            raise InvalidInput(f"--weekdays is {text!r}: use days such as mon-fri or mon,wed,sat.")
        found |= {(ends[0] + offset) % 7 for offset in range((ends[-1] - ends[0]) % 7 + 1)}
    return [DAYS[day] for day in sorted(found)]


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """Return the time zone of an IANA name. Raises InvalidInput."""
    # "localtime" and the like are files, too, but no names of IANA.
    if name in zoneinfo.available_timezones():
        return zoneinfo.ZoneInfo(name)
    raise InvalidInput(f"--timezone is {name!r}: use an IANA name, such as Europe/Berlin or America/New_York.")


def request_of(
    name: str, when: dict[str, Any], timezone: str | None, least: int, most: int | None, environment: Any
) -> Any:
    """Return the SDK's UpdateAutoscalingScheduleSettings. A schedule of the same name is replaced, and told."""
    from baseten.client.managementapi import UpdateAutoscalingScheduleSettings

    there = environment.autoscaling_schedules
    known = there.timezone if there and there.schedules else None
    zone = timezone or known
    if zone is None:
        raise InvalidInput("--timezone is missing: use a name such as Europe/Berlin or America/New_York.")
    if known and known != zone:
        sentence = f"--timezone is {zone!r}, and the schedules that are there use {known}"
        raise InvalidInput(f"{sentence}: an environment has one for all.")
    if "start_at" in when:
        when = {**when, **{key: when[key].replace(tzinfo=zone_of(zone)) for key in ("start_at", "end_at")}}
        _check_window(when["start_at"], when["end_at"])
    zone_of(zone)
    most = max(least, environment.autoscaling_settings.max_replica) if most is None else most
    if least > most:
        raise InvalidInput(f"--min-replica is {least}: use at most --max-replica, which is {most}.")
    replicas = {"min_replica": least, "max_replica": most, **dict.fromkeys(FOLLOWING)}
    made = {"name": name, "enabled": True, "autoscaling_settings": replicas, **when}
    for each in _schedules(environment):
        if each["name"] == name:
            made["id"] = each["id"]
            was = _when(each, known)
            console().print(f"This replaces {name}, which was {was}. Another --name adds one.", markup=False)
    return UpdateAutoscalingScheduleSettings(timezone=zone, schedules=[made])


def deletion_of(names: list[str], environment: Any) -> Any:
    """Return the SDK's settings that delete the schedules of these names or IDs, or all. Raises InvalidInput."""
    from baseten.client.managementapi import UpdateAutoscalingScheduleSettings

    there = _schedules(environment)
    gone = [each["id"] for each in there] if names == ["all"] else []
    for name in names if names != ["all"] else []:
        same = [each["id"] for each in there if name in (each["name"], each["id"])]
        if not same:
            known = ", ".join(each["name"] for each in there) or "none"
            raise InvalidInput(f"--delete is {name!r}, and there is no such schedule: there is {known}.")
        gone += same
    return UpdateAutoscalingScheduleSettings(delete_schedules=gone)


def change(client: Any, request: Any, environment: Any, timeout: float) -> Any:
    """Send the request. Returns the environment after it. Raises ClientError with NOT_THERE if that is why."""
    try:
        after = client.change_schedules(request, timeout)
    except (NotFound, RequestRefused, KeyRefused) as error:
        # 403: the key is good, as it was just before, and what is off is refused.
        if environment.autoscaling_schedules is None and error.status != 401:
            raise ClientError(f"{NOT_THERE} ({error})") from None
        raise
    if after.autoscaling_schedules is None:
        raise ClientError(NOT_THERE)
    return after


def show(environment: Any) -> None:
    """Print the schedules, and which of them applies now."""
    found = environment.autoscaling_schedules
    if found is None:
        return print(NOT_THERE)
    applied = found.applied_state.schedule_id if found.applied_state else None
    rows = []
    for each in _schedules(environment):
        settings = each.get("autoscaling_settings") or {}
        replicas = f"{settings.get('min_replica', '?')} to {settings.get('max_replica', '?')}"
        mark = "now" if applied and each["id"] == applied else "" if each.get("enabled", True) else "off"
        rows.append([each["name"], _when(each, found.timezone), replicas, mark])
    if not rows:
        return print(f"{environment.name} has no schedules.")
    print_table(f"Schedules of {environment.name}, {found.timezone}", ("name", "when", "replicas", ""), rows)


def _schedules(environment: Any) -> list[dict[str, Any]]:
    """Return each schedule by its fields: in the SDK one of a cadence that it does not know is a dict."""
    there = environment.autoscaling_schedules
    found = [each if isinstance(each, dict) else each.model_dump() for each in there.schedules] if there else []
    return [{"name": each.get("id"), **each} for each in found]


def _when(schedule: dict[str, Any], timezone: str | None) -> str:
    cadence = schedule.get("cadence")
    if cadence == "ONE_TIME":
        zone = zoneinfo.ZoneInfo(timezone) if timezone else datetime.UTC
        start, end = (schedule[key].astimezone(zone) for key in ("start_at", "end_at"))
        return f"{start:%Y-%m-%d %H:%M} to {end:{'%H:%M' if end.date() == start.date() else '%Y-%m-%d %H:%M'}}"
    if cadence not in ("DAILY", "HOURLY"):
        return f"{cadence}, which this version cannot show"
    days = ", ".join(day.title()[:3] for day in schedule["weekdays"])
    hours = [schedule[f"{end}_hour"] for end in ("start", "end")]
    start, end = (f"{hour:02}:" if hour is not None else "every hour :" for hour in hours)
    return f"{days} {start}{schedule['start_minute']:02} to {end}{schedule['end_minute']:02}"


def _daily(weekdays: str, start: datetime.datetime, end: datetime.datetime) -> dict[str, Any]:
    _check_order(start, end)
    times = {"start_hour": start.hour, "start_minute": start.minute, "end_hour": end.hour, "end_minute": end.minute}
    return {"cadence": "DAILY", "weekdays": weekdays_of(weekdays), **times}


def _window(on: datetime.datetime, start: datetime.datetime, end: datetime.datetime) -> dict[str, Any]:
    _check_order(start, end)
    start_at, end_at = (datetime.datetime.combine(on, moment.time()) for moment in (start, end))
    return {"cadence": "ONE_TIME", "start_at": start_at, "end_at": end_at}


def _check_order(start: datetime.datetime, end: datetime.datetime) -> None:
    if end <= start:
        raise InvalidInput(
            f"--to is {end:%H:%M}: use a time after --from, {start:%H:%M}. For a night set two schedules, with a "
            "--name each: until 23:59 and from 00:00."
        )


def _check_window(start: datetime.datetime, end: datetime.datetime) -> None:
    if start <= datetime.datetime.now(datetime.UTC):
        raise InvalidInput(f"--on is {start:%Y-%m-%d}: {start:%H:%M} has passed in {start.tzinfo}, use a later time.")
    for option, moment in (("--from", start), ("--to", end)):
        # Where clocks go forward, the time that they leave out does not come back from UTC.
        if moment.astimezone(datetime.UTC).astimezone(moment.tzinfo).time() != moment.time():
            raise InvalidInput(f"{option} is {moment:%H:%M}: clocks go forward over it that night, use another time.")

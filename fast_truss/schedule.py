"""Baseten's own autoscaling schedules: a replica is there while people are, and nobody has to wake it."""

import datetime
import zoneinfo
from typing import Annotated, Any

import typer

from fast_truss import Client, ClientError, InvalidInput, KeyRefused, NotFound, RequestRefused
from fast_truss.console import console, print_table
from fast_truss.options import AsJson, Where

DAYS = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")
NOT_THERE = (
    "This workspace does not have Baseten's schedules (a beta) yet: "
    ".github/workflows/wake.yml wakes on a schedule instead."
)
Moment = datetime.datetime | None


def _option(name: str, format: str, shown: str, help: str) -> Any:
    return typer.Option(name, formats=[format], metavar=shown, help=help)


def schedule(
    where: Where,
    name: Annotated[str | None, typer.Option(help="Replaces one of the same name. Default: office hours.")] = None,
    weekdays: Annotated[str, typer.Option(help="Such as mon-fri, mon,wed or daily.")] = "mon-fri",
    on: Annotated[Moment, _option("--on", "%Y-%m-%d", "YYYY-MM-DD", "One window only, on this date.")] = None,
    start: Annotated[Moment, _option("--from", "%H:%M", "HH:MM", "Such as 08:45.")] = None,
    end: Annotated[Moment, _option("--to", "%H:%M", "HH:MM", "Such as 18:00.")] = None,
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
        if delete:
            change: dict[str, Any] = {"delete_schedules": deletion_of(delete, environment)}
            environment = _send(client, change, environment, where.ask)
        elif start and end:
            named = name or (f"window {on:%Y-%m-%d}" if on else "office hours")
            replicas = replicas_of(min_replica, max_replica, environment)
            zone = _zone(timezone, environment)
            made = {
                "name": named,
                "enabled": True,
                "autoscaling_settings": replicas,
                **when(weekdays, on, start, end, zone),
            }
            change = {"timezone": zone.key, "schedules": [{**made, **_replaced(named, environment)}]}
            environment = _send(client, change, environment, where.ask)
    found = environment.autoscaling_schedules
    if as_json:
        return print(found.model_dump_json() if found else "null")
    show(environment)


def weekdays_of(text: str) -> list[str]:
    """Return the days that `mon-fri`, `mon,wed` or `daily` means, Monday first. Raises InvalidInput."""
    found: set[int] = set()
    for part in ("mon-sun" if text.strip().lower() in ("daily", "all") else text).lower().split(","):
        names = [name.strip() for name in part.split("-")]
        ends = [day for name in names for day in range(7) if len(name) >= 3 and DAYS[day].lower().startswith(name)]
        if len(ends) != len(names) or len(ends) > 2:
            raise InvalidInput(f"--weekdays is {text!r}: use days such as mon-fri or mon,wed,sat.")
        found |= {(ends[0] + offset) % 7 for offset in range((ends[-1] - ends[0]) % 7 + 1)}
    return [DAYS[day] for day in sorted(found)]


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """Return the time zone of an IANA name. Raises InvalidInput."""
    # "localtime" and the like are files, too, but no names of IANA.
    if name in zoneinfo.available_timezones():
        return zoneinfo.ZoneInfo(name)
    raise InvalidInput(f"--timezone is {name!r}: use an IANA name, such as Europe/Berlin or America/New_York.")


def _zone(name: str | None, environment: Any) -> zoneinfo.ZoneInfo:
    there = environment.autoscaling_schedules
    known = there.timezone if there and there.schedules else None
    if known and name not in (None, known):
        sentence = f"--timezone is {name!r}, and the schedules that are there use {known}"
        raise InvalidInput(f"{sentence}: an environment has one for all.")
    if not (name or known):
        raise InvalidInput("--timezone is missing: use an IANA name, such as Europe/Berlin or America/New_York.")
    return zone_of(name or known or "")


def when(
    weekdays: str, on: Moment, start: datetime.datetime, end: datetime.datetime, zone: zoneinfo.ZoneInfo
) -> dict[str, Any]:
    """Return the fields of the SDK's schedule that say when it applies. Raises InvalidInput."""
    if end <= start:
        night = "For a night set two schedules, with a --name each: until 23:59 and from 00:00."
        raise InvalidInput(f"--to is {end:%H:%M}: use a time after --from, {start:%H:%M}. {night}")
    if on is None:
        times = {"start_hour": start.hour, "start_minute": start.minute, "end_hour": end.hour, "end_minute": end.minute}
        return {"cadence": "DAILY", "weekdays": weekdays_of(weekdays), **times}
    moments = [datetime.datetime.combine(on, moment.time(), zone) for moment in (start, end)]
    for option, moment in zip(("--from", "--to"), moments, strict=True):
        # Where clocks go forward, the time that they leave out does not come back from UTC.
        if moment.astimezone(datetime.UTC).astimezone(zone).time() != moment.time():
            raise InvalidInput(f"{option} is {moment:%H:%M}: clocks go forward over it on that day, use another time.")
    if moments[0] <= datetime.datetime.now(datetime.UTC):
        raise InvalidInput(f"--on is {on:%Y-%m-%d}: {start:%H:%M} has passed in {zone.key}, use a later time.")
    return {"cadence": "ONE_TIME", "start_at": moments[0], "end_at": moments[1]}


def replicas_of(least: int, most: int | None, environment: Any) -> dict[str, int | None]:
    """Return the settings of a schedule. Baseten asks for every name; null follows the environment."""
    from baseten.client.managementapi import AutoscalingScheduleSettings

    most = max(least, environment.autoscaling_settings.max_replica) if most is None else most
    if least > most:
        raise InvalidInput(f"--min-replica is {least}: use at most --max-replica, which is {most}.")
    return {**dict.fromkeys(AutoscalingScheduleSettings.model_fields), "min_replica": least, "max_replica": most}


def deletion_of(names: list[str], environment: Any) -> list[str]:
    """Return the IDs of the schedules of these names or IDs, or of all. Raises InvalidInput."""
    there = _schedules(environment)
    if names == ["all"]:
        return [each["id"] for each in there]
    gone = []
    for name in names:
        same = [each["id"] for each in there if name in (each["name"], each["id"])]
        if not same:
            known = ", ".join(each["name"] for each in there) or "none"
            raise InvalidInput(f"--delete is {name!r}, and there is no such schedule: there is {known}.")
        gone += same
    return gone


def show(environment: Any) -> None:
    """Print the schedules, and which of them applies now."""
    found = environment.autoscaling_schedules
    rows = _schedules(environment)
    if not rows:
        return print(NOT_THERE if found is None else f"{environment.name} has no schedules.")
    applied = found.applied_state.schedule_id if found.applied_state else None
    table = []
    for each in rows:
        settings = each.get("autoscaling_settings") or {}
        replicas = f"{settings.get('min_replica', '?')} to {settings.get('max_replica', '?')}"
        mark = "now" if each["id"] == applied else "" if each.get("enabled", True) else "off"
        table.append([each["name"], shown(each, found.timezone), replicas, mark])
    print_table(f"Schedules of {environment.name}, {found.timezone}", ("name", "when", "replicas", ""), table)


def shown(schedule: dict[str, Any], timezone: str | None) -> str:
    """Return the times of a schedule for a person."""
    cadence = schedule.get("cadence")
    if cadence == "ONE_TIME":
        zone = zoneinfo.ZoneInfo(timezone) if timezone else datetime.UTC
        start, end = (schedule[key].astimezone(zone) for key in ("start_at", "end_at"))
        return f"{start:%Y-%m-%d %H:%M} to {end:{'%H:%M' if end.date() == start.date() else '%Y-%m-%d %H:%M'}}"
    if cadence not in ("DAILY", "HOURLY"):
        return f"{cadence}, which this version cannot show"
    days = ", ".join(day.title()[:3] for day in schedule["weekdays"])
    hours = (
        f"{hour:02}:" if hour is not None else "every hour :" for hour in (schedule["start_hour"], schedule["end_hour"])
    )
    return f"{days} {next(hours)}{schedule['start_minute']:02} to {next(hours)}{schedule['end_minute']:02}"


def _replaced(name: str, environment: Any) -> dict[str, str]:
    """Return the ID of the schedule of that name, and say how it was: it may only have had the usual name, too."""
    for each in _schedules(environment):
        if each["name"] == name:
            was = shown(each, environment.autoscaling_schedules.timezone)
            console().print(f"This replaces {name}, which was {was}. Another --name adds one.", markup=False)
            return {"id": each["id"]}
    return {}


def _send(client: Client, change: dict[str, Any], environment: Any, timeout: float) -> Any:
    """Change the schedules. Returns the environment after it. Raises ClientError with NOT_THERE if that is why."""
    from baseten.client.managementapi import UpdateAutoscalingScheduleSettings

    try:
        after = client.change_schedules(UpdateAutoscalingScheduleSettings(**change), timeout)
    except (NotFound, RequestRefused, KeyRefused) as error:
        # 403: the key is good, as it was just before, and what is off is refused.
        if environment.autoscaling_schedules is None and error.status != 401:
            raise ClientError(f"{NOT_THERE} ({error})") from None
        raise
    if after.autoscaling_schedules is None:
        raise ClientError(NOT_THERE)
    return after


def _schedules(environment: Any) -> list[dict[str, Any]]:
    """Return each schedule by its fields: in the SDK one of a cadence that it does not know is a dict."""
    there = environment.autoscaling_schedules
    found = [each if isinstance(each, dict) else each.model_dump() for each in there.schedules] if there else []
    return [{"name": each.get("id"), **each} for each in found]

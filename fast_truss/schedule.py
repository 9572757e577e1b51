"""Baseten's own autoscaling schedules: a replica is there while people are, and nobody has to wake it."""

import contextlib
import datetime
import zoneinfo
from typing import Annotated, Any

import typer

from fast_truss import ClientError, InvalidInput
from fast_truss.console import console, print_table
from fast_truss.options import Where

DAYS = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")
NOT_THERE = (
    "This workspace does not have Baseten's schedules (a beta): .github/workflows/wake.yml wakes on a schedule, too."
)
NIGHT = "For a night set two schedules, with a --name each: until 23:59 and from 00:00."
Time = datetime.datetime | None


def schedule(
    where: Where,
    name: Annotated[str, typer.Option(help="Replaces one of the same name.")] = "office hours",
    weekdays: Annotated[str, typer.Option(help="Such as mon-fri, mon,wed or daily.")] = "mon-fri",
    start: Annotated[Time, typer.Option("--from", formats=["%H:%M"], metavar="HH:MM", help="Such as 08:45.")] = None,
    end: Annotated[Time, typer.Option("--to", formats=["%H:%M"], metavar="HH:MM", help="Such as 18:00.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Such as Europe/Berlin. One for all schedules.")] = None,
    min_replica: Annotated[int, typer.Option(min=0, help="Replicas that are there in that time.")] = 1,
    max_replica: Annotated[int | None, typer.Option(min=1, help="Default: as in the environment.")] = None,
    delete: Annotated[list[str] | None, typer.Option(help="A name or an ID, or all.")] = None,
) -> None:
    """Show the times at which replicas are kept ready. --from and --to set one, --delete deletes some."""
    from baseten.client import managementapi as sdk

    given = [value for value in (start, end, timezone, max_replica) if value is not None]
    if given and (delete or start is None or end is None):
        raise InvalidInput("To set a schedule give --from and --to, without --delete.")
    if start and end and end <= start:
        raise InvalidInput(f"--to is {end:%H:%M}: use a time after --from, {start:%H:%M}. {NIGHT}")
    with where.client() as client:
        environment = client.environment(where.ask)
        there = {each["name"]: each for each in _schedules(environment)}
        change = None
        if delete:
            found = _schedules(environment)
            gone = [each["id"] for each in found if delete == ["all"] or each["name"] in delete]
            # What is no name is an ID, or Baseten refuses it.
            gone += [each for each in delete if each not in there and delete != ["all"]]
            change = sdk.UpdateAutoscalingScheduleSettings(delete_schedules=gone)
        elif start and end:
            zone = _zone(timezone, environment)
            # Baseten asks for every setting; null follows the environment.
            settings = dict.fromkeys(sdk.AutoscalingScheduleSettings.model_fields)
            most = max_replica or max(min_replica, environment.autoscaling_settings.max_replica)
            made = {
                "name": name,
                "enabled": True,
                "cadence": "DAILY",
                "weekdays": weekdays_of(weekdays),
                "start_hour": start.hour,
                "start_minute": start.minute,
                "end_hour": end.hour,
                "end_minute": end.minute,
                "autoscaling_settings": {**settings, "min_replica": min_replica, "max_replica": most},
            }
            if name in there:
                was = shown(there[name], zone)
                console().print(f"This replaces {name}, which was {was}. Another --name adds one.", markup=False)
                made["id"] = there[name]["id"]
            change = sdk.UpdateAutoscalingScheduleSettings(timezone=zone, schedules=[made])
        if change:
            environment = client.change_schedules(change, where.ask)
    zone = environment.autoscaling_schedules.timezone
    rows = [[each["name"], shown(each, zone), _replicas(each)] for each in _schedules(environment)]
    if not rows:
        return print(f"{environment.name} has no schedules.")
    print_table(f"Schedules of {environment.name}, {zone}", ("name", "when", "replicas"), rows)


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


def shown(schedule: dict[str, Any], timezone: str) -> str:
    """Return the times of a schedule for a person."""
    with contextlib.suppress(LookupError, TypeError, ValueError):  # of a field that is missing or of another type
        if schedule["cadence"] == "DAILY":
            days = ", ".join(day.title()[:3] for day in schedule["weekdays"])
            return days + " {start_hour:02d}:{start_minute:02d} to {end_hour:02d}:{end_minute:02d}".format_map(schedule)
        if schedule["cadence"] == "ONE_TIME":
            times = (datetime.datetime.fromisoformat(str(schedule[key])) for key in ("start_at", "end_at"))
            return " to ".join(f"{time.astimezone(zoneinfo.ZoneInfo(timezone)):%Y-%m-%d %H:%M}" for time in times)
    return f"{schedule['cadence']}: see it on Baseten"


def _replicas(schedule: dict[str, Any]) -> str:
    settings = schedule.get("autoscaling_settings") or {}
    replicas = f"{settings.get('min_replica', '?')} to {settings.get('max_replica', '?')}"
    return replicas if schedule.get("enabled", True) else f"{replicas}, off"


def _zone(name: str | None, environment: Any) -> str:
    there = environment.autoscaling_schedules
    if there.schedules and name not in (None, there.timezone):
        # Sent as it is, it would move the others.
        raise InvalidInput(f"--timezone is {name!r}: leave it out, the schedules that are there use {there.timezone}.")
    return zone_of(name or there.timezone or "").key


def _schedules(environment: Any) -> list[dict[str, Any]]:
    """Return each schedule by its fields: in the SDK one of a cadence that it does not know is a dict."""
    if environment.autoscaling_schedules is None:
        raise ClientError(NOT_THERE)
    there = environment.autoscaling_schedules.schedules
    found = [each if isinstance(each, dict) else each.model_dump() for each in there]
    return [{"name": each.get("id"), "cadence": None, **each} for each in found]

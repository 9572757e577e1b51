"""What Baseten recorded of a model: its requests, its startups and its price."""

import datetime
import random
import time
import zoneinfo
from typing import Any

from fast_truss.errors import ClientError
from fast_truss.plan.traffic import MOST_REQUESTS, WEEK, Traffic

METRIC = "baseten_inference_requests_total"
# Of a startup, what comes before the container: it is not paid for.
UNBILLED = ("SCHEDULING", "IMAGE_PULL", "WEIGHT_DOWNLOAD")
DAYS = 30


def requests(client: Any, zone: zoneinfo.ZoneInfo, seed: int) -> Traffic:
    """Return the last seven days of an environment or a deployment, by Baseten's metrics. Raises ClientError.

    Baseten tells a rate for each step. Within a step the requests are put at random.
    """
    from baseten.client import managementapi as sdk

    now = int(time.time() * 1000)
    start, target = now - int(WEEK * 1000), client.target
    window = {"mode": "SERIES", "start_epoch_millis": start, "end_epoch_millis": now, "metrics": [METRIC]}
    kind, names = "environments", {"env_name": target.environment}
    if not target.environment:
        kind, names = "deployments", {"deployment_id": client.status().deployment_id}
    params = getattr(sdk, f"GetModels{kind.title()}MetricsParams")(**window)
    found = client.ask_management(f"get_models_{kind}_metrics", params=params, model_id=target.model_id, **names)
    arrivals = spread(found, random.Random(seed))
    if not 2 <= len(arrivals) <= MOST_REQUESTS:
        raise ClientError(f"Baseten counted {len(arrivals)} requests of {target} in seven days: give --pattern.")
    origin = datetime.datetime.fromtimestamp(start / 1000, datetime.UTC)
    since = [max(0.0, moment - start / 1000) for moment in arrivals]
    return Traffic(since, (now - start) / 1000, origin, zone, f"the last seven days of {target}")


def spread(found: Any, chance: random.Random) -> list[float]:
    """Return when (seconds since 1970, in order) the requests came that the SDK's GetModelMetricsResponse counts."""
    places = [place for place, each in enumerate(found.metric_descriptors) if each.name == METRIC]
    if not places:
        raise ClientError(f"Baseten's metrics do not tell {METRIC} here: give --requests or --pattern.")
    is_rate = found.metric_descriptors[places[0]].unit_hint == "PER_SECOND"
    ends = [*(each.start_epoch_millis for each in found.metric_values[1:]), found.end_epoch_millis]
    arrivals = []
    for each, end in zip(found.metric_values, ends, strict=False):  # without values there is still an end
        seconds = (end - each.start_epoch_millis) / 1000
        counted = sum(value or 0.0 for value in each.values[places[0]]) * (seconds if is_rate else 1.0)
        # A half is one in every second step, and not none ever.
        count = int(counted + chance.random())
        arrivals += [each.start_epoch_millis / 1000 + chance.random() * seconds for _ in range(count)]
    return sorted(arrivals)


def usual_start(client: Any) -> tuple[float, float, str]:
    """Return the seconds of a usual startup, those before its container, and a sentence. Raises ClientError."""
    now = int(time.time() * 1000)
    summary = client.startups_summary(start_epoch_millis=now - DAYS * 86_400_000, end_epoch_millis=now)
    if summary is None or summary.total_duration_ms.p50_ms is None:
        raise ClientError(f"Baseten recorded no startup of the last {DAYS} days: give --cold-start.")
    total = summary.total_duration_ms.p50_ms / 1000
    phases = {each.phase: (each.duration_ms.p50_ms or 0) / 1000 for each in summary.phase_duration_ms}
    count = summary.total_duration_ms.sample_count
    sentence = f"The cold start is the median of {count} startups that Baseten recorded in {DAYS} days."
    return total, min(total, sum(phases.get(name, 0.0) for name in UNBILLED)), sentence


def list_price(client: Any) -> float:
    """Return USD an hour of one replica. Raises ClientError."""
    from fast_truss.load import price_per_minute

    found = price_per_minute(client)
    if found is None:
        raise ClientError("Baseten does not tell the price of this instance type: give --price, in USD an hour.")
    return round(found * 60, 4)

"""The one deployment of the fake platform: a server of model_servers.py, and its state as in Baseten's SDK.

Each answer is made as an object of the SDK's own models, so that a field that is missing or misnamed fails here.
"""

import asyncio
import contextlib
import copy
import datetime
import time
from collections.abc import Callable
from typing import Any

import httpx
from baseten.client import managementapi as sdk

# What a deployer gets who sets nothing.
AUTOSCALING = {
    "min_replica": 0,
    "max_replica": 1,
    "autoscaling_window": 60,
    "scale_down_delay": 900,
    "concurrency_target": 1,
    "target_utilization_percentage": 70,
    "max_scale_down_rate": 50,
}
# Bounds that the SDK's model does not know.
BOUNDS = {"min_replica": (0, 1), "max_replica": (1, 1), "autoscaling_window": (10, 3600), "scale_down_delay": (0, 3600)}
GPU = {"gpu_count": 1, "gpu_type": "T4", "gpu_memory_limit_mib": 16384}
T4 = sdk.InstanceType(id="T4x4x16", name="T4:4x16", memory_limit_mib=16384, millicpu_limit=4000, **GPU)
READY = "/v1/models/model/loaded"
# Set over /_platform before each test. faults: answers of the next predicts; management_faults: of the next requests
# to the management host. See fake_baseten.py for the others.
CLEAN = {
    "faults": [],
    "management_faults": [],
    "deactivated": False,
    "stuck": False,
    "park_seconds": 600.0,
    "provision_seconds": 0.0,
    "load_seconds": 0.2,
    "image_seconds": 0.01,
    "replaces": True,
    "others": 0,
    "queues_changes": False,
    "hides_deprecated": False,
    "has_schema": True,
    "changed": [],
    "has_startups": True,
    "starts": 0,
    "asked": 0,
    "predicts": 0,
    "settings": [],
    "secrets": ["hf_access_token"],
    "autoscaling": AUTOSCALING,
}


class Replica:
    """The state of the one deployment. All of it is plain, and /_platform changes it."""

    def __init__(self, make: Callable[["Replica"], Any]) -> None:
        """make: starts a server, see model_servers.py."""
        self.make = make
        self.status = "SCALED_TO_ZERO"
        self.attempts: list[sdk.StartupAttempt] = []
        for name, value in copy.deepcopy(CLEAN).items():
            setattr(self, name, value)
        self.in_flight = 0
        self.last_request = 0.0
        self.ready = asyncio.Event()
        self.url = ""
        self.server: Any = None
        self.replica_id = ""
        self.ending: set[asyncio.Task] = set()
        self.starting: asyncio.Task | None = None

    def wake(self) -> None:
        self.last_request = time.monotonic()
        if self.status != "SCALED_TO_ZERO":
            return
        self.status = "WAKING_UP"
        self.starts += 1
        self.starting = asyncio.create_task(self.start())

    async def start(self) -> None:
        if self.stuck:
            return
        began = time.time()
        await asyncio.sleep(self.provision_seconds)
        provisioned = time.time()
        server = self.server = self.make(self)
        self.url = server.url
        self.status = "LOADING_MODEL"
        started = time.time()
        async with httpx.AsyncClient() as http:
            while server.alive():
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(self.url + READY)).is_success:
                        self.attempts.append(attempt([began, provisioned, started, time.time()]))
                        self.replica_id = self.attempts[-1].replica_id
                        self.status = "ACTIVE"
                        self.last_request = time.monotonic()
                        self.ready.set()
                        return
                await asyncio.sleep(0.02)
        self.status = "FAILED"

    async def stop(self) -> None:
        self.ready.clear()
        if self.starting:
            self.starting.cancel()
        # At once: who asks while the old server ends gets a new one.
        server, self.server, self.status = self.server, None, "SCALED_TO_ZERO"
        if server:
            self.ending.add(asyncio.create_task(server.stop()))

    async def end_replica(self, replica_id: str) -> bool:
        """Return whether there is such a replica. Another takes its place."""
        if self.status != "ACTIVE" or replica_id != self.replica_id:
            return False
        await self.stop()
        if self.replaces:
            self.wake()
        return True

    async def scale_to_zero(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            idle = time.monotonic() - self.last_request
            waiting = self.in_flight or self.autoscaling["min_replica"] or idle < self.autoscaling["scale_down_delay"]
            if self.status == "ACTIVE" and not waiting:
                await self.stop()

    def change(self, request: sdk.UpdateAutoscalingSettings) -> sdk.UpdateAutoscalingSettingsResponse:
        """Raises ValueError for a value out of bounds."""
        changes = request.model_dump(exclude_unset=True)
        for name, value in changes.items():
            low, high = BOUNDS.get(name, (1, 1000))
            if not low <= value <= high:
                raise ValueError(f"{name} must be from {low} to {high}")
        self.settings.append(changes)
        if self.queues_changes:
            return sdk.UpdateAutoscalingSettingsResponse(status="QUEUED", message="A deployment is under way.")
        changed = {**self.autoscaling, **changes} != self.autoscaling
        self.autoscaling.update(changes)
        return sdk.UpdateAutoscalingSettingsResponse(status="ACCEPTED" if changed else "UNCHANGED", message="Done.")

    def describe(self, name: str, environment: str | None) -> sdk.Deployment:
        return sdk.Deployment(
            id="dep1",
            created_at=datetime.datetime.now(datetime.UTC),
            name=name,
            model_id="model",
            is_production=environment == "production" or name == "dep1",
            is_development=name == "development",
            status="INACTIVE" if self.deactivated else "ACTIVE" if self.others else self.status,
            active_replica_count=int(self.status == "ACTIVE") + self.others,
            autoscaling_settings=sdk.AutoscalingSettings(**self.autoscaling),
            instance_type_name=T4.name,
            environment=environment,
            request_backpressure_settings=sdk.RequestBackpressureSettings(),
        )

    def describe_environment(self, name: str) -> sdk.Environment:
        return sdk.Environment(
            name=name,
            created_at=datetime.datetime.now(datetime.UTC),
            model_id="model",
            current_deployment=self.describe("first", name),
            autoscaling_settings=sdk.AutoscalingSettings(**self.autoscaling),
            promotion_settings=sdk.ModelPromotionSettings(),
            instance_type=T4,
            request_backpressure_settings=sdk.RequestBackpressureSettings(),
        )

    def startups(self, params: Any) -> sdk.StartupAttempts:
        return sdk.StartupAttempts(
            items=self.within(params),
            pagination=sdk.PaginationResponse(has_more=False),
            total_count=len(self.within(params)),
        )

    def startups_summary(self, params: Any) -> sdk.StartupSummary:
        found = self.within(params)
        phases: dict[str, list[int]] = {}
        for each in found:
            for phase in each.phase_summary:
                phases.setdefault(phase.phase, []).append(phase.duration_ms)
        return sdk.StartupSummary(
            start_epoch_millis=params.start_epoch_millis,
            end_epoch_millis=params.end_epoch_millis,
            total_duration_ms=percentiles([each.duration_ms for each in found]),
            phase_duration_ms=[
                sdk.StartupPhasePercentiles(phase=name, duration_ms=percentiles(values))
                for name, values in phases.items()
            ],
        )

    def within(self, params: Any) -> list[sdk.StartupAttempt]:
        """Newest first, as Baseten sorts them."""
        return [
            each
            for each in reversed(self.attempts)
            if params.start_epoch_millis <= each.started_at_epoch_millis <= params.end_epoch_millis
        ]


def attempt(moments: list[float]) -> sdk.StartupAttempt:
    """moments: epoch seconds of the wake, the machine, the start of the container, and readiness."""
    began, provisioned, started, ready = (int(1000 * moment) for moment in moments)
    spans = {
        "SCHEDULING": (began, provisioned),
        "IMAGE_PULL": (provisioned, provisioned),
        "CONTAINER_CREATE": (provisioned, started),
        "CONTAINER_START": (started, started),
        "READINESS": (started, ready),
    }
    phases = [
        sdk.StartupPhaseSummary(phase=name, status="COMPLETED", offset_ms=start - began, duration_ms=end - start)
        for name, (start, end) in spans.items()
    ]
    return sdk.StartupAttempt(
        model_id="model",
        deployment_id="dep1",
        deployment_name="first",
        environment_name="production",
        replica_id=f"replica-{began}",
        started_at_epoch_millis=began,
        ready_at_epoch_millis=ready,
        duration_ms=ready - began,
        outcome="SUCCESS",
        phase_summary=phases,
    )


def percentiles(values: list[int]) -> sdk.StartupPercentiles:
    ordered = sorted(values)

    def at(percent: int) -> int | None:
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else None

    mean = sum(ordered) // len(ordered) if ordered else None
    points = {f"p{percent}_ms": at(percent) for percent in (50, 90, 95, 99)}
    return sdk.StartupPercentiles(sample_count=len(ordered), mean_ms=mean, **points)

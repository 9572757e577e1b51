"""What Baseten says of a deployment: its status and its autoscaling settings."""

import dataclasses
from typing import Any

from fast_truss.errors import DeploymentFailed, InvalidInput, UnexpectedAnswer, printable
from fast_truss.target import Target

READY = "ACTIVE"
# States that no replica leaves by itself. UNHEALTHY and UPDATING are not among them: a replica that fails its health
# checks is restarted, and an update ends.
FAILED = ("BUILD_FAILED", "BUILD_STOPPED", "DEACTIVATED", "DEACTIVATING", "DEPLOY_FAILED", "FAILED", "INACTIVE")
# The SDK's model has the names and the types, but not these bounds.
BOUNDS = {
    "min_replica": (0, 1000),
    "max_replica": (1, 1000),
    "autoscaling_window": (10, 3600),
    "scale_down_delay": (0, 3600),
    "concurrency_target": (1, 1000),
    "target_utilization_percentage": (1, 100),
    "max_scale_down_rate": (1, 50),
}


@dataclasses.dataclass(frozen=True)
class Status:
    """status: Baseten's own word, such as SCALED_TO_ZERO, WAKING_UP, LOADING_MODEL or ACTIVE.

    autoscaling: the known settings by name, of the environment or of the single deployment. None: not given.
    """

    status: str
    replicas: int
    deployment_id: str
    autoscaling: dict[str, int] | None

    @property
    def ready(self) -> bool:
        """True when a replica can answer at once."""
        return self.status == READY and self.replicas >= 1

    @property
    def failed(self) -> bool:
        """True when the deployment never becomes ready by itself."""
        return self.status in FAILED

    def raise_if_failed(self) -> None:
        """Raise DeploymentFailed if the deployment never becomes ready by itself."""
        if self.failed:
            cure = "activate it on Baseten" if self.status.startswith(("INACTIVE", "DEACTIVAT")) else "see its log"
            raise DeploymentFailed(f"The deployment is {self.status}: {cure}, or push again.")


class Settings(dict[str, int]):
    """Autoscaling settings by name. answered, message: of a change, ACCEPTED, QUEUED or UNCHANGED if Baseten says."""

    answered: str | None = None
    message: str | None = None


def status_of(target: Target, found: Any) -> Status:
    """Return the status in the SDK's Environment or Deployment. Raises UnexpectedAnswer."""
    deployment = found.current_deployment if target.environment else found
    if deployment is None:
        raise UnexpectedAnswer(f"{target} has no deployment yet: `truss push --environment {target}` makes one.")
    return Status(
        status=printable(deployment.status),
        replicas=deployment.active_replica_count,
        deployment_id=deployment.id,
        autoscaling=settings_of(found) or None,
    )


def settings_of(found: Any) -> Settings:
    """Return the settings in the SDK's Environment or Deployment, empty if there are none."""
    settings = getattr(found, "autoscaling_settings", None)
    return Settings(settings.model_dump(exclude_none=True, warnings=False) if settings else {})


def checked_autoscaling(changes: dict[str, int]) -> Any:
    """Return the SDK's UpdateAutoscalingSettings. Raises InvalidInput for an unknown name or a value out of bounds."""
    for name, value in changes.items():
        if name not in BOUNDS:
            raise InvalidInput(f"{name} is not an autoscaling setting: use {', '.join(BOUNDS)}.")
        low, high = BOUNDS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidInput(f"{name} is {value!r}: use a whole number from {low} to {high}.")
    least, most = changes.get("min_replica"), changes.get("max_replica")
    if least is not None and most is not None and least > most:
        raise InvalidInput(f"min_replica is {least}: use at most max_replica, which is {most}.")
    from baseten.client.managementapi import UpdateAutoscalingSettings

    return UpdateAutoscalingSettings.model_validate(changes)

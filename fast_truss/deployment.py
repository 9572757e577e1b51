"""Which deployment of a model, and what Baseten says of it: its status and its autoscaling settings."""

import dataclasses
import re
from typing import Any

from fast_truss.errors import DeploymentFailed, InvalidInput, UnexpectedAnswer, printable

NAME = re.compile(r"[A-Za-z0-9_-]+")
KINDS = ("environment", "regional", "deployment", "development")
READY = "ACTIVE"
# States that no replica leaves by itself. UNHEALTHY and UPDATING are not among them: a replica that fails its health
# checks is restarted, and an update ends.
FAILED = ("BUILD_FAILED", "BUILD_STOPPED", "DEACTIVATED", "DEACTIVATING", "DEPLOY_FAILED", "FAILED", "INACTIVE")


@dataclasses.dataclass(frozen=True)
class Target:
    """kind: environment, regional (an environment on its own host), deployment or development.

    name: of the environment, or the id of the deployment. Raises InvalidInput for a name that is none.
    """

    model_id: str
    kind: str = "environment"
    name: str = "production"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInput(f"kind is {self.kind!r}: use one of {', '.join(KINDS)}.")
        self.check_names(model_id=self.model_id, name=self.name)

    @staticmethod
    def check_names(**names: Any) -> None:
        """Raise InvalidInput for a part of a path that is no name: with `..` it would be the path of something else."""
        for field, value in names.items():
            if not isinstance(value, str) or not NAME.fullmatch(value):
                raise InvalidInput(f"{field} is {value!r}: use letters, digits, '_' and '-' only.")

    @property
    def environment(self) -> str | None:
        """The name of the environment; None for a single deployment."""
        return self.name if self.kind in ("environment", "regional") else None

    @property
    def is_production(self) -> bool:
        return self.environment == "production"

    @property
    def path(self) -> str:
        """The path of the deployment on its inference host, to which /predict and the like are added."""
        single = {"regional": "", "development": "/development", "deployment": f"/deployment/{self.name}"}
        return single.get(self.kind, "/production" if self.is_production else f"/environments/{self.name}")

    @property
    def names(self) -> dict[str, str]:
        """The arguments by which the SDK's management API knows this target."""
        if self.environment:
            return {"model_id": self.model_id, "env_name": self.environment}
        return {"model_id": self.model_id, "deployment_id": self.name if self.kind == "deployment" else "development"}

    def __str__(self) -> str:
        return {"deployment": f"deployment {self.name}", "development": "development"}.get(self.kind, self.name)

    def arguments(self) -> list[str]:
        """Return what names this target on the command line."""
        where = {
            "deployment": ["--deployment", self.name],
            "development": ["--development"],
            "regional": ["--environment", self.name, "--regional"],
        }.get(self.kind, ["--environment", self.name])
        return ["--model", self.model_id, *where]


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

    def raise_if_failed(self) -> None:
        """Raise DeploymentFailed if the deployment never becomes ready by itself."""
        if self.status in FAILED:
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
    """Return the SDK's UpdateAutoscalingSettings. Raises InvalidInput for an unknown name or a value of another type.

    Baseten checks the bounds.
    """
    from baseten.client.managementapi import UpdateAutoscalingSettings
    from pydantic import ValidationError

    try:
        return UpdateAutoscalingSettings.model_validate(changes, strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InvalidInput(f"The autoscaling setting {wrong['loc'][0]} is wrong: {wrong['msg']}.") from None

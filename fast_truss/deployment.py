"""A deployment of a model: how it is addressed, its status and its autoscaling settings."""

import dataclasses
import re
from typing import Any

from fast_truss.errors import DeploymentFailed, InvalidInput, UnexpectedAnswer, printable

NAME = re.compile(r"[A-Za-z0-9_-]+")
KINDS = ("environment", "regional", "deployment", "development")
READY = "ACTIVE"
# States that need a person. UNHEALTHY and UPDATING are not among them: Baseten restarts a replica that fails its health
# checks, and an update ends.
FAILED = ("BUILD_FAILED", "BUILD_STOPPED", "DEACTIVATED", "DEACTIVATING", "DEPLOY_FAILED", "FAILED", "INACTIVE")


@dataclasses.dataclass(frozen=True)
class Target:
    """kind: environment, regional (an environment on its own host), deployment or development.

    name: the environment's name or the deployment's id. Raises InvalidInput for an invalid name.
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
        """Raise InvalidInput unless each is a plain name: `..` in a path would address something else."""
        for field, value in names.items():
            if not isinstance(value, str) or not NAME.fullmatch(value):
                raise InvalidInput(f"{field} is {value!r}: use letters, digits, '_' and '-' only.")

    @property
    def environment(self) -> str | None:
        """The environment's name; None for a single deployment."""
        return self.name if self.kind in ("environment", "regional") else None

    @property
    def path(self) -> str:
        """The deployment's path on its inference host, the prefix of /predict and /wake."""
        single = {"regional": "", "development": "/development", "deployment": f"/deployment/{self.name}"}
        return single.get(self.kind, "/production" if self.name == "production" else f"/environments/{self.name}")

    @property
    def names(self) -> dict[str, str]:
        """The arguments of the SDK's management API that name this target."""
        if self.environment:
            return {"model_id": self.model_id, "env_name": self.environment}
        return {"model_id": self.model_id, "deployment_id": self.name if self.kind == "deployment" else "development"}

    def __str__(self) -> str:
        return {"deployment": f"deployment {self.name}", "development": "development"}.get(self.kind, self.name)

    def arguments(self) -> list[str]:
        """Return the command-line options that name this target."""
        where = {
            "deployment": ["--deployment", self.name],
            "development": ["--development"],
            "regional": ["--environment", self.name, "--regional"],
        }.get(self.kind, ["--environment", self.name])
        return ["--model", self.model_id, *where]


@dataclasses.dataclass(frozen=True)
class Status:
    """status: as Baseten reports it, such as SCALED_TO_ZERO, WAKING_UP, LOADING_MODEL or ACTIVE.

    autoscaling: settings by name, of the environment or the single deployment. None: Baseten did not report them.
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
        """Raise DeploymentFailed if the deployment cannot become ready without a person."""
        if self.status in FAILED:
            cure = "activate it on Baseten" if self.status.startswith(("INACTIVE", "DEACTIVAT")) else "see its log"
            raise DeploymentFailed(f"The deployment is {self.status}: {cure}, or push again.")


class Settings(dict[str, int]):
    """Autoscaling settings by name. answered, message: of a change; ACCEPTED, QUEUED or UNCHANGED, if reported."""

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
    """Return the autoscaling settings in the SDK's Environment or Deployment, empty if it has none."""
    settings = getattr(found, "autoscaling_settings", None)
    return Settings(settings.model_dump(exclude_none=True, warnings=False) if settings else {})


def checked_autoscaling(changes: dict[str, int]) -> Any:
    """Return the SDK's UpdateAutoscalingSettings. Raises InvalidInput for an unknown name or a wrong type.

    Baseten checks the bounds.
    """
    from baseten.client.managementapi import UpdateAutoscalingSettings
    from pydantic import ValidationError

    try:
        return UpdateAutoscalingSettings.model_validate(changes, strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InvalidInput(f"The autoscaling setting {wrong['loc'][0]} is wrong: {wrong['msg']}.") from None

"""Which deployment of a model, and what the two APIs call it."""

import dataclasses
import re

from fast_truss.errors import InvalidInput

NAME = re.compile(r"[A-Za-z0-9_-]+")
KINDS = ("environment", "regional", "deployment", "development")


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
        for field in ("model_id", "name"):
            value = getattr(self, field)
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

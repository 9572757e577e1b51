"""Which deployment of a model, its path, and its methods in Baseten's SDK."""

import dataclasses
import re
from typing import Any

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

    def describe(self, api: Any) -> Any:
        """Ask the SDK's management API for the environment, or for the one deployment."""
        if self.environment:
            return api.get_models_environments_env_name(model_id=self.model_id, env_name=self.environment)
        if self.kind == "development":
            return api.get_models_deployments_development(model_id=self.model_id)
        return api.get_models_deployments_deployment_id(model_id=self.model_id, deployment_id=self.name)

    def startups(self, api: Any, deployment_id: str, what: str = "startups", **window: Any) -> Any:
        """Ask for the newest attempts in Baseten's record of startups. what: startups_summary for its percentiles."""
        from baseten.client import managementapi as sdk

        kind = "environments" if self.environment else "deployments"
        names = {"env_name": self.environment} if self.environment else {"deployment_id": deployment_id}
        if what == "startups":
            # The SDK asks for both, though the API does not.
            window = {"sort_by": "STARTED_AT", "direction": "desc", **window}
        title = "".join(word.title() for word in f"get_models_{kind}_{what}_params".split("_"))
        ask = getattr(api, f"get_models_{kind}_{what}")
        return ask(model_id=self.model_id, **names, params=getattr(sdk, title)(**window))

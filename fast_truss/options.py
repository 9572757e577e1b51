"""The options that name a deployment. Every command has them, and they are written once, here."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fast_truss.api import AsyncClient, Client
from fast_truss.errors import InvalidInput
from fast_truss.rules import Wait
from fast_truss.target import Target

PANEL = "Which model"


@dataclasses.dataclass(frozen=True)
class Where:
    """What the options say. Raises InvalidInput when it is asked for a target that they do not name."""

    model: str
    environment: str
    regional: bool
    deployment: str | None
    development: bool
    url: str | None
    timeout: float

    @property
    def target(self) -> Target:
        if not self.model and self.url is None:
            raise InvalidInput("--model is missing: give the id of the model on Baseten, or set BASETEN_MODEL_ID.")
        if (self.deployment is not None) + self.development + self.regional > 1:
            raise InvalidInput("--deployment, --development and --regional exclude each other: give one of them.")
        # A local server has no id.
        model = self.model or "local"
        if self.deployment is not None:
            return Target(model, "deployment", self.deployment)
        if self.development:
            return Target(model, "development")
        return Target(model, "regional" if self.regional else "environment", self.environment)

    def client(self) -> Client:
        from fast_truss.console import tell_pause

        return Client(self.target, url=self.url, on_pause=tell_pause)

    def async_client(self, on_pause: Callable[[Wait], None] | None = None) -> AsyncClient:
        return AsyncClient(self.target, url=self.url, on_pause=on_pause)


def positive(seconds: float) -> float:
    """Return seconds, as a timeout. Raises typer.BadParameter."""
    if not 0 < seconds <= 86400:
        raise typer.BadParameter("use more than 0 and at most 86400 seconds.")
    return seconds


def _option(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=PANEL, **settings)


OPTIONS = {
    "model": (
        Annotated[str, _option("--model", envvar="BASETEN_MODEL_ID", help="Its id on Baseten.", show_default=False)],
        "",
    ),
    "environment": (Annotated[str, _option("--environment", help="One of its environments.")], "production"),
    "regional": (Annotated[bool, _option("--regional", help="Use the environment's own regional host.")], False),
    "deployment": (Annotated[str | None, _option("--deployment", help="The id of one deployment.")], None),
    "development": (Annotated[bool, _option("--development", help="The development deployment.")], False),
    "url": (Annotated[str | None, _option("--url", help="A local server, such as http://127.0.0.1:8000.")], None),
    "timeout": (Annotated[float, _option("--timeout", help="Seconds to wait at most.", callback=positive)], 1800.0),
}


def on_target(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above. Its first parameter, a Where, holds what they say."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        command(Where(**{name: arguments.pop(name) for name in OPTIONS}), **arguments)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = list(inspect.signature(command).parameters.values())[1:]
    shared = [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, (annotation, default) in OPTIONS.items()
    ]
    parameters = [parameter.replace(kind=keyword) for parameter in own] + shared
    # Any function may have one, and typer reads it.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run

"""The options that name a deployment. Every command has them, and they are written once, here."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss import AsyncClient, Client, InvalidInput, Target

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


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
        model = self.model or "local"  # a local server has no id
        if self.deployment is not None:
            return Target(model, "deployment", self.deployment)
        if self.development:
            return Target(model, "development")
        return Target(model, "regional" if self.regional else "environment", self.environment)

    @property
    def ask(self) -> float:
        """Seconds for a question that waits for no replica."""
        return min(self.timeout, 60.0)

    def client(self) -> Client:
        from fast_truss.console import tell_pause

        return Client(self.target, url=self.url, on_pause=tell_pause)

    def async_client(self, on_pause: Callable[[Any], None] | None = None) -> AsyncClient:
        return AsyncClient(self.target, url=self.url, on_pause=on_pause)


def positive(seconds: float) -> float:
    """Return seconds, as a timeout. Raises typer.BadParameter."""
    if not 0 < seconds <= 86400:
        raise typer.BadParameter("use more than 0 and at most 86400 seconds.")
    return seconds


def check_file(option: str, file: Path, suffixes: tuple[str, ...]) -> None:
    """Raise InvalidInput if no file with one of these suffixes can be written there."""
    wrong = None
    try:
        if file.suffix.lower() not in suffixes:
            wrong = f"use a name that ends in {', '.join(suffixes)}"
        elif not file.parent.is_dir():
            wrong = "its folder does not exist, make it first"
        elif file.is_dir():
            wrong = "this is a folder, name a file in it"
        elif not os.access(file if file.exists() else file.parent, os.W_OK):
            wrong = "it cannot be written, choose another place"
    except OSError as error:  # such as a name that is too long
        wrong = f"it cannot be written ({error.strerror})"
    if wrong:
        raise InvalidInput(f"{option} is {str(file)[:200]!r}: {wrong}.")


def _option(name: str, help: str, **settings: Any) -> Any:
    return typer.Option(f"--{name}", help=help, rich_help_panel="Which model", **settings)


OPTIONS: dict[str, tuple[Any, Any]] = {
    "model": (
        Annotated[str, _option("model", "Its ID on Baseten.", envvar="BASETEN_MODEL_ID", show_default=False)],
        "",
    ),
    "environment": (Annotated[str, _option("environment", "One of its environments.")], "production"),
    "regional": (Annotated[bool, _option("regional", "Use the environment's own regional host.")], False),
    "deployment": (Annotated[str | None, _option("deployment", "The ID of one deployment.")], None),
    "development": (Annotated[bool, _option("development", "The development deployment.")], False),
    "url": (Annotated[str | None, _option("url", "A local server, such as http://127.0.0.1:8000.")], None),
    "timeout": (Annotated[float, _option("timeout", "Seconds to wait at most.", callback=positive)], 1800.0),
}


def on_target(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above. Its first parameter, a Where, holds what they say."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        command(Where(**{name: arguments.pop(name) for name in OPTIONS}), **arguments)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [each.replace(kind=keyword) for each in list(inspect.signature(command).parameters.values())[1:]]
    shared = [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, (annotation, default) in OPTIONS.items()
    ]
    # Any function may have one, and typer reads it.
    run.__signature__ = inspect.Signature(own + shared)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in own + shared}
    return run

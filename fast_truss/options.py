"""The options that many commands have, written once: those that name a deployment, and --json."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss import AsyncClient, Client, InvalidInput, Target
from fast_truss.console import tell_pause


def positive(seconds: float) -> float:
    """Return seconds, as a timeout. Raises typer.BadParameter."""
    if not 0 < seconds <= 86400:
        raise typer.BadParameter("use more than 0 and at most 86400 seconds.")
    return seconds


def check_file(option: str, file: Path, suffixes: Collection[str]) -> None:
    """Raise InvalidInput if no file with one of these suffixes can be written there."""
    if file.suffix.lower() not in suffixes:
        raise InvalidInput(f"{option} is {str(file)!r}: use a name that ends in {', '.join(suffixes)}.")
    try:
        existed = file.exists()
        file.open("ab").close()
        if not existed:
            file.unlink()
    except OSError as error:
        raise InvalidInput(f"{option} is {str(file)[:200]!r}: it cannot be written ({error.strerror}).") from None


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_which = functools.partial(typer.Option, rich_help_panel="Which model")


@dataclasses.dataclass(frozen=True)
class Where:
    """The options that name a deployment. Raises InvalidInput when it is asked for a target that they do not name."""

    model: Annotated[str, _which("--model", help="ID on Baseten.", envvar="BASETEN_MODEL_ID", show_default=False)] = ""
    environment: Annotated[str, _which("--environment", help="One of its environments.")] = "production"
    regional: Annotated[bool, _which("--regional", help="Use the environment's own regional host.")] = False
    deployment: Annotated[str | None, _which("--deployment", help="The ID of one deployment.")] = None
    development: Annotated[bool, _which("--development", help="The development deployment.")] = False
    url: Annotated[str | None, _which("--url", help="A local server, such as http://127.0.0.1:8000.")] = None
    timeout: Annotated[float, _which("--timeout", help="Seconds to wait at most.", callback=positive)] = 1800.0

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
        return Client(self.target, url=self.url, on_pause=tell_pause)

    def async_client(self) -> AsyncClient:
        return AsyncClient(self.target, url=self.url)


def on_target(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of Where. Its first parameter, a Where, holds what they say."""
    own, shared = (inspect.signature(each).parameters for each in (command, Where))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(Where(**{name: given.pop(name) for name in shared}), **given)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in [*own.values(), *shared.values()][1:]]
    # typer reads it.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run

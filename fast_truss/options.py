"""Options that many commands share: those that name a deployment, and --json."""

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
    """Return seconds if they are a valid timeout. Raises typer.BadParameter."""
    if not 0 < seconds <= 86400:
        raise typer.BadParameter("use more than 0 and at most 86400 seconds.")
    return seconds


def check_file(option: str, file: Path, suffixes: Collection[str]) -> None:
    """Raise InvalidInput if the suffix is not one of these, or the file cannot be written."""
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
    """The options that name a deployment. `target` raises InvalidInput if they name none."""

    model: Annotated[str, _which("--model", help="ID on Baseten.", envvar="BASETEN_MODEL_ID", show_default=False)] = ""
    environment: Annotated[str, _which("--environment", help="Environment of the model.")] = "production"
    regional: Annotated[bool, _which("--regional", help="Use the environment's regional host.")] = False
    deployment: Annotated[str | None, _which("--deployment", help="Deployment ID, instead of an environment.")] = None
    development: Annotated[bool, _which("--development", help="Use the development deployment.")] = False
    url: Annotated[str | None, _which("--url", help="Local server, such as http://127.0.0.1:8000.")] = None
    timeout: Annotated[float, _which("--timeout", help="Longest wait, in seconds.", callback=positive)] = 1800.0

    @property
    def target(self) -> Target:
        if not self.model and self.url is None:
            raise InvalidInput("--model is missing: set it or BASETEN_MODEL_ID to the model's ID on Baseten.")
        if (self.deployment is not None) + self.development + self.regional > 1:
            raise InvalidInput("--deployment, --development and --regional exclude each other: use one of them.")
        model = self.model or "local"  # a local server has no ID
        if self.deployment is not None:
            return Target(model, "deployment", self.deployment)
        if self.development:
            return Target(model, "development")
        return Target(model, "regional" if self.regional else "environment", self.environment)

    @property
    def ask(self) -> float:
        """Timeout in seconds of a call that waits for no replica."""
        return min(self.timeout, 60.0)

    def client(self) -> Client:
        return Client(self.target, url=self.url, on_pause=tell_pause)

    def async_client(self) -> AsyncClient:
        return AsyncClient(self.target, url=self.url)


def on_target(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of Where to a command, whose first parameter is that Where."""
    own, shared = (inspect.signature(each).parameters for each in (command, Where))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(Where(**{name: given.pop(name) for name in shared}), **given)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in [*own.values(), *shared.values()][1:]]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run

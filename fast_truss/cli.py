"""The command line: `fast-truss --help`. Each command has a module, which imports heavy packages only when it runs."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fast_truss import coldstart, doctor, fields, generation, hosting, load, status
from fast_truss.errors import ClientError, InvalidInput
from fast_truss.options import Where, on_target
from fast_truss.plan.command import plan

app = typer.Typer(
    help="Wake, watch, call and measure a model on Baseten or on a local server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# The model's fields are options too: see fields.py.
ANY_FIELD: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True}


def main() -> None:
    """Run one command. An error is one sentence on stderr, with exit status 2 for invalid input and 1 otherwise."""
    try:
        app(prog_name="fast-truss")
    except (ClientError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, InvalidInput) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def add(command: Callable[..., None], example: str, name: str | None = None, **settings: Any) -> None:
    """Register a command. Its help ends with the example."""
    app.command(name, epilog=f"Example: fast-truss {example}", context_settings=settings or None)(command)


def gateway(
    where: Where,
    listen: Annotated[str, typer.Option(help="Address to listen on. A public one needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 8080,
    key_file: Annotated[
        typer.FileText | None, typer.Option(help="File with the gateway's key. Default: $FAST_TRUSS_GATEWAY_KEY.")
    ] = None,
) -> None:
    """Serve OpenAI's Images API in front of the model. A request wakes the model."""
    try:
        from fast_truss.gateway import serve
    except ModuleNotFoundError as error:
        raise InvalidInput(f'{error.name} is not installed: pip install "fast-truss[gateway]"') from None
    key = key_file.read().strip() if key_file else os.environ.get("FAST_TRUSS_GATEWAY_KEY", "")
    if not key and (key_file or (listen != "127.0.0.1" and sys.stdin.isatty())):
        key = typer.prompt("Key for this gateway", hide_input=True)
    serve(where.async_client(), listen, port, key, where.timeout)


add(on_target(status.wake), "wake --wait")
add(on_target(status.status), "status --model abcd1234")
add(on_target(generation.generate), 'generate "a lighthouse at dawn" --width 512 -o dawn.png', **ANY_FIELD)
add(on_target(fields.show), "fields --url http://127.0.0.1:8000", name="fields")
add(on_target(status.autoscaling), "autoscaling --min-replica 0 --scale-down-delay 300")
add(on_target(coldstart.coldstart), "coldstart --png coldstart.png")
add(on_target(load.load), "load --requests 100 --rate 0.5 --width 512", **ANY_FIELD)
add(on_target(doctor.doctor), "doctor --project . --no-image")
add(doctor.pushed, "pushed .pushed.json")
app.command()(plan)  # its docstring has an example
add(on_target(hosting.serve), "app --listen 0.0.0.0", name="app")
add(on_target(gateway), "gateway --port 8080")

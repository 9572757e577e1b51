"""The command line of client.py: wake, status, generate, autoscaling and coldstart on Baseten."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from client import AUTOSCALING, Client, ClientError, Status, Target, image_bytes

console = Console(stderr=True)


def wake(client: Client, arguments: argparse.Namespace) -> None:
    """Start a replica, and with --wait show each status until it is ready."""
    started = time.monotonic()
    client.wake()
    if not arguments.wait:
        print("Baseten is starting a replica. `status` tells when it is ready.")
        return
    show_progress(client, arguments.timeout, started)
    print(f"Ready after {time.monotonic() - started:.1f} s.")


def show_progress(client: Client, timeout: float, started: float, until: Any = lambda s: s.ready) -> list[Status]:
    """Show each status and the seconds so far, until one is as asked. Returns them."""
    seen = []
    with console.status("asking"):
        for status in client.watch(timeout, until):
            console.print(f"{time.monotonic() - started:7.1f} s  {status.status}, {status.replicas} replicas")
            seen.append(status)
    return seen


def status(client: Client, arguments: argparse.Namespace) -> None:
    """Print the status and the number of replicas."""
    now = client.status()
    print(f"{now.status}, {now.replicas} replicas{', ready' if now.ready else ''}")


def generate(client: Client, arguments: argparse.Namespace) -> None:
    """Write one image to --output, and show the cold start if there was one."""
    request = {
        name: getattr(arguments, name)
        for name in ("seed", "num_inference_steps", "width", "height", "negative_prompt")
        if getattr(arguments, name) is not None
    }
    with console.status("generating: a cold start may come first"):
        answer = client.generate(arguments.prompt, timeout=arguments.timeout, **request)
    (image,) = image_bytes(answer)[:1]
    arguments.output.write_bytes(image)
    print(f"{arguments.output} (seed {answer['images'][0]['seed']})")
    show_phases(answer)


def show_phases(answer: dict[str, Any]) -> None:
    """Show the phases of the cold start, in seconds. Only the first answer of a replica holds them."""
    phases = (answer.get("timings") or {}).get("cold_start")
    if not phases:
        return
    table = Table("cold start", "seconds")
    for name, seconds in phases.items():
        table.add_row(name, f"{seconds:.2f}")
    console.print(table)


def autoscaling(client: Client, arguments: argparse.Namespace) -> None:
    """Print the settings, after the changes if there are any."""
    changes = {name: getattr(arguments, name) for name in AUTOSCALING if getattr(arguments, name) is not None}
    for name, value in client.autoscaling(**changes).items():
        print(f"{name}: {value}")


def coldstart(client: Client, arguments: argparse.Namespace) -> None:
    """Scale to zero, wake, and measure until the first image. The settings are put back."""
    before = client.autoscaling()
    restored = {name: before[name] for name in ("min_replica", "scale_down_delay") if name in before}
    started = time.monotonic()
    try:
        client.autoscaling(min_replica=0, scale_down_delay=0)
        show_progress(client, arguments.timeout, started, lambda s: s.status == "SCALED_TO_ZERO")
    finally:
        client.autoscaling(**restored)
    started = time.monotonic()
    client.wake()
    show_progress(client, arguments.timeout, started)
    ready = time.monotonic()
    answer = client.generate("a lighthouse on a cliff at dawn", timeout=arguments.timeout)
    print(f"wake to ready {ready - started:.1f} s, first image {time.monotonic() - ready:.1f} s")
    show_phases(answer)


def parse_arguments() -> argparse.Namespace:
    """Return the arguments. Exits with 2 if they are wrong."""
    parser = argparse.ArgumentParser(description="Wake, watch and call this model on Baseten.")
    parser.add_argument("--model", default=os.environ.get("BASETEN_MODEL_ID", ""), help="Default: BASETEN_MODEL_ID.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--environment", default="production", help="Default: production.")
    where.add_argument("--deployment", help="The id of one deployment.")
    where.add_argument("--development", action="store_true", help="The development deployment.")
    parser.add_argument("--timeout", type=float, default=1800, help="Seconds to wait at most. Default: 1800.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("wake", help="Start a replica before somebody asks.")
    add.add_argument("--wait", action="store_true", help="Return when the model is ready.")
    commands.add_parser("status", help="Show the status and the number of replicas.")
    add = commands.add_parser("generate", help="Make an image; goes through a cold start.")
    add.add_argument("prompt")
    add.add_argument("-o", "--output", type=Path, default=Path("image.png"), help="Default: image.png.")
    add.add_argument("--url", help="A local server, such as http://127.0.0.1:8000, in place of Baseten.")
    add.add_argument("--negative-prompt")
    for name in ("seed", "num-inference-steps", "width", "height"):
        add.add_argument(f"--{name}", type=int)
    add = commands.add_parser("autoscaling", help="Show the autoscaling settings, or change them.")
    for name in AUTOSCALING:
        add.add_argument(f"--{name.replace('_', '-')}", type=int)
    commands.add_parser("coldstart", help="Scale to zero, wake, and measure until the first image.")
    arguments = parser.parse_args()
    if not arguments.model and not getattr(arguments, "url", None):
        parser.error("--model is missing: give the id of the model on Baseten, or set BASETEN_MODEL_ID.")
    return arguments


def target_of(arguments: argparse.Namespace) -> Target:
    """Return the deployment that the arguments name. Raises ClientError for an id that is none."""
    # A local server has no id.
    model = arguments.model or "local"
    if arguments.deployment:
        return Target(model, "deployment", arguments.deployment)
    if arguments.development:
        return Target(model, "development")
    return Target(model, "environment", arguments.environment)


def main() -> None:
    """Run one command. What goes wrong is one sentence on stderr, and exit status 1."""
    arguments = parse_arguments()
    commands = {
        "wake": wake,
        "status": status,
        "generate": generate,
        "autoscaling": autoscaling,
        "coldstart": coldstart,
    }
    try:
        client = Client(target_of(arguments), url=getattr(arguments, "url", None))
        commands[arguments.command](client, arguments)
    except ClientError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

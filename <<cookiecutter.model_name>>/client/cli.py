"""The command line: `python -m client --help`. Each command imports what it alone needs."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from client.errors import ClientError, InvalidInput
from client.options import Where, on_target

app = typer.Typer(
    help="Wake, watch, call and measure this model, on Baseten or on a local server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def main() -> None:
    """Run one command. What goes wrong is one sentence on stderr: status 2 if the caller can mend it, else 1."""
    try:
        app(prog_name="python -m client")
    except ClientError as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, InvalidInput) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
@on_target
def wake(
    where: Where,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the model is ready.")] = False,
) -> None:
    """Start a replica before somebody asks."""
    from client.console import show_progress

    with where.client() as client:
        started = time.monotonic()
        client.wake(min(where.timeout, 60))
        if wait:
            show_progress(client, where.timeout, started)
            print(f"Ready after {time.monotonic() - started:.1f} s.")
        elif client.status(min(where.timeout, 60)).ready:
            print("The model is awake already.")
        else:
            print("Baseten is starting a replica. `status` tells when it is ready.")


@app.command()
@on_target
def status(
    where: Where,
    request: Annotated[str | None, typer.Option(help="The id of an async request, as `generate` prints it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the status and the number of replicas, or the status of an async request."""
    from client.console import replicas

    client = where.client()
    timeout = min(where.timeout, 60)
    if request is not None:
        found = client.submitted(request, timeout)
        if as_json:
            print(found.model_dump_json())
            return
        print(f"{found.status} since {found.status_at}, webhook {found.webhook_status}")
        for error in found.errors:
            print(f"{error.code}: {error.message}")
        return
    now = client.status(timeout)
    if as_json:
        ready = {"ready": now.ready}
        print(json.dumps({"status": now.status, "replicas": now.replicas, "deployment": now.deployment_id, **ready}))
        return
    print(f"{now.status}, {replicas(now.replicas)}{', ready' if now.ready else ''}")


@app.command()
@on_target
def generate(
    where: Where,
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png, .jpg or .webp file.")] = Path("image.png"),
    negative_prompt: Annotated[str | None, typer.Option(help="What it must not show.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same image.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely it follows the prompt.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    num_images: Annotated[int | None, typer.Option(help="How many: out-1.png, out-2.png and so on.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to start from.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much of it is painted over.")] = None,
    quality: Annotated[int | None, typer.Option(help="Of .jpg and .webp, 1 to 100.")] = None,
    webhook: Annotated[
        str | None, typer.Option(help="Queue the request, and send the answer to this address: for long queues.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make images; goes through a cold start. What is left out is as config.yaml says."""
    from client import generation

    request: dict[str, Any] = {
        "prompt": prompt,
        "output_format": generation.check_output(output),
        "negative_prompt": negative_prompt,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "width": width,
        "height": height,
        "num_images": num_images,
        "image": generation.read_image(image) if image else None,
        "strength": strength,
        "quality": quality,
    }
    request = {name: value for name, value in request.items() if value is not None}
    with where.client() as client:
        if webhook is None:
            return generation.generate(client, request, output, where.timeout, as_json)
        request_id = client.submit(webhook=webhook, timeout=min(where.timeout, 60), **request)
    print(json.dumps({"request_id": request_id}) if as_json else f"{request_id} is queued. See `status --request`.")


@app.command()
@on_target
def autoscaling(
    where: Where,
    min_replica: Annotated[int | None, typer.Option(help="0: scale to zero.")] = None,
    max_replica: Annotated[int | None, typer.Option()] = None,
    autoscaling_window: Annotated[int | None, typer.Option(help="Seconds of traffic to look at.")] = None,
    scale_down_delay: Annotated[int | None, typer.Option(help="Seconds without traffic before a replica ends.")] = None,
    concurrency_target: Annotated[int | None, typer.Option(help="Requests at once for one replica.")] = None,
    target_utilization_percentage: Annotated[int | None, typer.Option()] = None,
    max_scale_down_rate: Annotated[int | None, typer.Option(help="Percent of the replicas, 1 to 50.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the autoscaling settings, or change them."""
    settings = {
        "min_replica": min_replica,
        "max_replica": max_replica,
        "autoscaling_window": autoscaling_window,
        "scale_down_delay": scale_down_delay,
        "concurrency_target": concurrency_target,
        "target_utilization_percentage": target_utilization_percentage,
        "max_scale_down_rate": max_scale_down_rate,
    }
    changes = {name: value for name, value in settings.items() if value is not None}
    found = where.client().autoscaling(min(where.timeout, 60), **changes)
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {value}")


@app.command(name="app")
@on_target
def serve_page(
    where: Where,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page.")] = 7860,
) -> None:
    """Serve a page for visitors, which wakes the model when it is opened."""
    client = where.async_client()
    try:
        from client.page import launch
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install -r requirements-app.txt") from None
    launch(client, port)

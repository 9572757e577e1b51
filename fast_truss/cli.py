"""The command line: `fast-truss --help`. Each command imports what it alone needs."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss.errors import ClientError, InvalidInput
from fast_truss.options import Where, on_target, positive
from fast_truss.plan.command import plan

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
        app(prog_name="fast-truss")
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
    from fast_truss.console import show_progress

    with where.client() as client:
        started = time.monotonic()
        client.wake(min(where.timeout, 60))
        if wait:
            left = max(where.timeout - (time.monotonic() - started), 0.0)
            show_progress(client, left, started)
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
    from fast_truss.console import replicas

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
    num_images: Annotated[int | None, typer.Option(help="How many: image-1.png, image-2.png and so on.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture to start from; several where the model takes references.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="How much of --image is painted over, above 0 to 1.")] = None,
    mask: Annotated[Path | None, typer.Option(help="A picture: what is white in it is painted over.")] = None,
    mask_blur: Annotated[int | None, typer.Option(help="Pixels, of the edges of the mask.")] = None,
    mask_padding: Annotated[
        int | None, typer.Option(help="Paint only the mask and so many pixels around it, at the whole size.")
    ] = None,
    quality: Annotated[int | None, typer.Option(help="Of .jpg and .webp, 1 to 100.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="One that config.yaml names, as NAME or NAME:SCALE. Once for each.")
    ] = None,
    webhook: Annotated[
        str | None, typer.Option(help="Queue the request, and send the answer to this address: for long queues.")
    ] = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Show each step. Default: on a terminal only.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make images; goes through a cold start. What is left out is as config.yaml says."""
    from fast_truss import generation

    if stream and webhook is not None:
        raise InvalidInput("--stream and --webhook exclude each other: give one of them.")
    request: dict[str, Any] = {
        "prompt": prompt,
        "output_format": generation.check_outputs(output, num_images or 1),
        "negative_prompt": negative_prompt,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "width": width,
        "height": height,
        "num_images": num_images,
        "image": generation.read_images(image or []),
        "strength": strength,
        "mask": generation.read_image(mask, "--mask") if mask else None,
        "mask_blur": mask_blur,
        "mask_padding": mask_padding,
        "quality": quality,
        "loras": [generation.read_lora(each) for each in lora] if lora else None,
    }
    request = {name: value for name, value in request.items() if value is not None}
    with where.client() as client:
        if webhook is None:
            return generation.generate(client, request, output, where.timeout, as_json, stream)
        request_id = client.submit(webhook=webhook, timeout=min(where.timeout, 60), **request)
    print(json.dumps({"request_id": request_id}) if as_json else f"{request_id} is queued. See `status --request`.")


@app.command()
@on_target
def autoscaling(
    where: Where,
    min_replica: Annotated[int | None, typer.Option(help="0: scale to zero.")] = None,
    max_replica: Annotated[int | None, typer.Option(help="Never more replicas than these.")] = None,
    autoscaling_window: Annotated[int | None, typer.Option(help="Seconds of traffic to look at.")] = None,
    scale_down_delay: Annotated[int | None, typer.Option(help="Seconds without traffic before a replica ends.")] = None,
    concurrency_target: Annotated[int | None, typer.Option(help="Requests at once for one replica.")] = None,
    target_utilization_percentage: Annotated[
        int | None, typer.Option(help="Percent of --concurrency-target at which it scales.")
    ] = None,
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


@app.command()
@on_target
def coldstart(
    where: Where,
    png: Annotated[Path | None, typer.Option(help="Also draw the chart into this file.")] = None,
    after_delay: Annotated[
        int | None, typer.Option(min=0, max=3600, help="What scale_down_delay shall be afterwards, if not as now.")
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="Only show what Baseten recorded.")] = False,
    days: Annotated[int, typer.Option(min=1, max=90, help="Of the history.")] = 7,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Scale to zero, wake, and show the whole cold start. The settings are put back."""
    from fast_truss import coldstart

    client = where.client()
    if history:
        return coldstart.history(client, days, as_json)
    coldstart.measure(client, where.timeout, yes, after_delay, png, as_json)


@app.command()
@on_target
def schedule(
    where: Where,
    name: Annotated[
        str | None, typer.Option(help="One of the same name is replaced. Else: office hours, or window and date.")
    ] = None,
    weekdays: Annotated[str, typer.Option(help="Such as mon-fri, mon,wed or daily.")] = "mon-fri",
    on: Annotated[str | None, typer.Option(help="One window only, on this date, such as 2027-03-31.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="A time, such as 08:45.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="A time, such as 18:00.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Such as Europe/Berlin. One for all schedules.")] = None,
    min_replica: Annotated[int, typer.Option(help="Replicas that are there in that time.")] = 1,
    max_replica: Annotated[int | None, typer.Option(help="If not what the environment has.")] = None,
    delete: Annotated[list[str] | None, typer.Option(help="A name or an id, or all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show, set and delete the times at which replicas are kept ready: Baseten's own schedules."""
    import datetime

    from fast_truss import schedule as schedules

    if (start is None) != (end is None):
        raise InvalidInput("--from and --to belong together: give both, or none to show the schedules.")
    if delete and start:
        raise InvalidInput("--delete and --from exclude each other: give one of them.")
    for option, value in (("--name", name), ("--on", on), ("--timezone", timezone), ("--max-replica", max_replica)):
        if value is not None and start is None:
            raise InvalidInput(f"{option} is of a schedule to set: give --from and --to, too.")
    timeout = min(where.timeout, 60)
    with where.client() as client:
        environment = client.environment(timeout)
        if delete:
            environment = schedules.change(client, schedules.deletion_of(delete, environment), environment, timeout)
        elif start and end:
            named = name or (f"window {on}" if on else "office hours")
            wanted = schedules.Wanted(named, weekdays, on, start, end, timezone, min_replica, max_replica)
            now = datetime.datetime.now(datetime.UTC)
            settings = schedules.settings_of(wanted, environment, now)
            schedules.tell_replaced(settings, environment)
            environment = schedules.change(client, settings, environment, timeout)
    if as_json:
        found = environment.autoscaling_schedules
        print(found.model_dump_json() if found else "null")
        return
    schedules.show(environment)


@app.command()
@on_target
def doctor(
    where: Where,
    image: Annotated[bool, typer.Option(help="Make one image, which wakes the model and costs a little.")] = True,
    as_json: AsJson = False,
) -> None:
    """Check all that a push needs, and after it (with --model or --url) that the model answers."""
    from itertools import chain

    from fast_truss import doctor
    from fast_truss.api import Client
    from fast_truss.console import tell_pause

    is_local = where.url is not None
    pushed = bool(where.model) or is_local
    # Before the first push there is no id.
    target = (where if pushed else dataclasses.replace(where, model="none")).target
    client: Client | ClientError
    try:
        client = Client(target, url=where.url, on_pause=tell_pause)
    except ClientError as error:
        if is_local:  # nothing is left to check
            raise
        client = error
    before = iter(()) if is_local else doctor.before_the_push(client)
    after: Iterator[doctor.Check] = iter(())
    if pushed and isinstance(client, Client):
        after = doctor.after_the_push(client, where.timeout, image)
    if not doctor.run(chain(before, after), as_json):
        sys.exit(1)


@app.command()
def pushed(
    file: Annotated[Path, typer.Argument(help="What `truss push --output json` wrote.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.", callback=positive)] = 1800.0,
) -> None:
    """End a push: the status of what was pushed, its first image in image.png, and its cold start."""
    import os

    from fast_truss import doctor
    from fast_truss.api import Client
    from fast_truss.console import tell_pause

    target = doctor.pushed_target(file)
    if not os.environ.get("BASETEN_API_KEY"):  # Truss may have read its own from ~/.trussrc
        command = " ".join(["fast-truss doctor", *target.arguments()])
        print(f"Pushed. To see its first image and cold start, put a key into BASETEN_API_KEY: {command}")
        return
    checks = doctor.after_the_push(Client(target, on_pause=tell_pause), timeout, True, Path("image.png"))
    if not doctor.run(checks, as_json=False):
        sys.exit(1)


@app.command()
@on_target
def load(
    where: Where,
    requests: Annotated[int, typer.Option(min=1, max=10_000, help="How many in all.")] = 100,
    concurrency: Annotated[int, typer.Option(min=1, max=100, help="Requests at once.")] = 4,
    prompt: Annotated[str, typer.Option(help="What each image shows.")] = "a lighthouse on a cliff at dawn",
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send many requests, and show how long they took and what 1,000 images cost. Each one is paid for."""
    import asyncio

    from fast_truss import load

    options = {"num_inference_steps": num_inference_steps, "width": width, "height": height}
    request = {"prompt": prompt, **{name: value for name, value in options.items() if value is not None}}
    result = load.Result()
    client = where.async_client(on_pause=result.count_pause)
    asyncio.run(load.run(client, result, request, requests, concurrency, where.timeout))
    load.report(result, load.price_per_minute(where.client()), as_json)
    if result.errors:
        sys.exit(1)


app.command()(plan)


@app.command(name="app")
@on_target
def serve_page(
    where: Where,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page.")] = 7860,
) -> None:
    """Serve a page for visitors, which wakes the model when it is opened."""
    import socket

    client = where.async_client()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InvalidInput(f"--port {port} cannot be used ({error.strerror}): name another one.") from None
    try:
        from fast_truss.page import launch
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install -r requirements-app.txt") from None
    launch(client, port, where.url)


@app.command()
@on_target
def gateway(
    where: Where,
    listen: Annotated[
        str, typer.Option(help="An address of this machine. If others reach it, it needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    key_file: Annotated[
        typer.FileText | None, typer.Option(help="Holds the key of its clients. Else FAST_TRUSS_GATEWAY_KEY does.")
    ] = None,
) -> None:
    """Serve OpenAI's Images API in front of the model, for programs that speak it. It wakes the model."""
    import os

    try:
        from fast_truss.gateway import serve
    except ModuleNotFoundError as error:
        raise InvalidInput(f'{error.name} is not installed: pip install "fast-truss[gateway]"') from None
    key = key_file.read().strip() if key_file else os.environ.get("FAST_TRUSS_GATEWAY_KEY", "")
    if not key and (key_file or (listen != "127.0.0.1" and sys.stdin.isatty())):
        key = typer.prompt("The key of this gateway", hide_input=True)
    serve(where.async_client(), listen, port, key, where.timeout)

"""Checks before a push and after it, one line each, and the end of a push."""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss import Client, ClientError, InvalidInput, Target, image_bytes
from fast_truss.console import replicas, tell_pause
from fast_truss.errors import printable
from fast_truss.options import Where, positive

NO_CONFIG = "Name the folder of the project with --project. `make check` there says more."
NO_WEIGHTS = "Check the network, and this entry in config.yaml. If it is gated, ask for access and set HF_TOKEN."


def doctor(
    where: Where,
    project: Annotated[Path, typer.Option(help="The folder of config.yaml.")] = Path("."),
    image: Annotated[bool, typer.Option(help="Generate image.png, which wakes the model and costs a little.")] = True,
) -> None:
    """Check what a push needs, and after it (with --model or --url) that the model answers."""
    client = where.client() if where.model or where.deployment is not None or where.url is not None else None
    good = where.url is not None or before_the_push(project)
    if client:
        good = after_the_push(client, where.timeout, image) and good
    sys.exit(not good)


def pushed(
    file: Annotated[typer.FileText, typer.Argument(errors="replace", help="What `truss push --output json` wrote.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.", callback=positive)] = 1800.0,
) -> None:
    """End a push: the status of what was pushed, and its first image, in image.png, with its cold start."""
    # Whatever is around the JSON object.
    ids = re.search(r'"model_id": *"(\w+)".*?"model_version_id": *"(\w+)"', file.read(), re.DOTALL)
    if ids is None:
        raise InvalidInput(f"{file.name} is not what `truss push --output json` writes: run `make push`.")
    target = Target(ids[1], "deployment", ids[2])
    if not os.environ.get("BASETEN_API_KEY"):  # Truss may have read its own from ~/.trussrc
        command = " ".join(["fast-truss doctor", *target.arguments()])
        return print(f"Pushed. To see its first image and cold start, put a key into BASETEN_API_KEY: {command}")
    sys.exit(not after_the_push(Client(target, on_pause=tell_pause), timeout))


def before_the_push(project: Path) -> bool:
    """Check what a first start needs outside the project."""
    secrets: list[str] = []
    repos: list[tuple[str, str | None, list[str]]] = []

    def read() -> str:
        import yaml

        config = yaml.safe_load((project / "config.yaml").read_text("utf-8"))
        secrets.extend(config.get("secrets") or {})
        repos.extend(_repos(config))
        return f"it names {len(repos)} repositories of weights"

    good = [check("config.yaml", read, NO_CONFIG), check("key and secrets", lambda: _secrets(secrets))]
    good += [check(f"weights of {repo[0]}", functools.partial(_weights, *repo), NO_WEIGHTS) for repo in repos]
    return all(good)


def after_the_push(client: Client, timeout: float, with_image: bool = True) -> bool:
    """Check the status, and one image."""
    good = check("status", lambda: _status(client))
    return good and (not with_image or check("image", lambda: _image(client, timeout)))


def check(name: str, look: Callable[[], str], cure: str = "") -> bool:
    """Print what look finds, or the error that it raises, and the cure. Returns whether it raised none."""
    try:
        good, found = True, look()
    except Exception as error:  # of YAML, the Hub or the disk, too, or by what nobody should write in config.yaml
        kind = "" if isinstance(error, ClientError) else f"{type(error).__name__}: "
        good, found = False, f"{kind}{error} {cure}"
    typer.secho("ok      " if good else "failed  ", fg="green" if good else "red", nl=False)
    print(f"{name}: {' '.join(printable(found).split())}")
    return good


def _repos(config: dict[str, Any]) -> Iterator[tuple[str, str | None, list[str]]]:
    """Yield name, commit and patterns of files of each repository that is cached or mounted."""
    for cached in config.get("model_cache") or []:
        yield cached["repo_id"], cached.get("revision"), cached.get("allow_patterns") or ["*"]
    for mounted in config.get("weights") or []:
        scheme, _, address = mounted["source"].partition("://")
        if scheme == "hf":
            repo_id, _, revision = address.partition("@")
            yield repo_id, revision or None, mounted.get("allow_patterns") or ["*"]


def _secrets(wanted: list[str]) -> str:
    client = Client(Target("none"), on_pause=tell_pause)  # they are of the workspace, and not of a model
    there = {secret.name for secret in client.ask_management("get_secrets").secrets}
    if missing := ", ".join(name for name in wanted if name not in there):
        raise ClientError(f"{missing} is not in this workspace: add it on Baseten, under Settings, Secrets.")
    return f"the key works, secrets needed: {', '.join(wanted) or 'none'}"


def _weights(repo_id: str, revision: str | None, patterns: list[str]) -> str:
    import huggingface_hub as hub

    there = [each.rfilename for each in hub.HfApi().model_info(repo_id, revision=revision).siblings or []]
    # As Baseten reads a pattern: only `*` means something, and it crosses `/`.
    rules = {pattern: ".*".join(map(re.escape, pattern.split("*"))) for pattern in patterns}
    found = {pattern: [file for file in there if re.fullmatch(rule, file)] for pattern, rule in rules.items()}
    if missing := ", ".join(pattern for pattern, files in found.items() if not files):
        raise ClientError(f"Commit {revision} does not hold {missing}.")
    # The list of a gated repository is public, its files are not: so ask for one.
    hub.get_hf_file_metadata(hub.hf_hub_url(repo_id, found[patterns[0]][0], revision=revision))
    return f"all files can be reached at {revision}"


def _status(client: Client) -> str:
    status = client.status()
    status.raise_if_failed()
    return f"{status.status}, {replicas(status.replicas)}"


def _image(client: Client, timeout: float) -> str:
    answer = client.generate("a lighthouse on a cliff at dawn", timeout=timeout)
    found = f"image.png, {Path('image.png').write_bytes(image_bytes(answer)[0])} bytes"
    # Only the first answer of a replica holds it.
    phases = (answer.get("timings") or {}).get("cold_start") or {}
    listed = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items())
    return f"{found}, cold start {sum(phases.values()):.1f} s ({listed})" if phases else found

"""Checks before and after a push, one line each, and the last step of `make push`."""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss import Client, ClientError, InvalidInput, Target, fields, image_bytes
from fast_truss.console import replicas, tell_pause
from fast_truss.errors import printable
from fast_truss.options import Where, positive

NO_CONFIG = "Set --project to the project's folder, and run `make check` there for details."
NO_WEIGHTS = "Check the network and this entry in config.yaml. If it is gated, ask for access and set HF_TOKEN."


def doctor(
    where: Where,
    project: Annotated[Path, typer.Option(help="Folder that contains config.yaml.")] = Path("."),
    image: Annotated[bool, typer.Option(help="Generate image.png. This wakes the model and costs a little.")] = True,
) -> None:
    """Check what a push needs; with --model or --url, also check that the model answers."""
    client = where.client() if where.model or where.deployment is not None or where.url is not None else None
    good = where.url is not None or before_the_push(project)
    if client:
        good = after_the_push(client, where.timeout, image) and good
    sys.exit(not good)


def pushed(
    file: Annotated[typer.FileText, typer.Argument(errors="replace", help="Output of `truss push --output json`.")],
    timeout: Annotated[float, typer.Option(help="Longest wait, in seconds.", callback=positive)] = 1800.0,
) -> None:
    """Finish a push: show the deployment's status, save its first image as image.png, and show its cold start."""
    # Truss may print other text around the JSON object.
    ids = re.search(r'"model_id": *"(\w+)".*?"model_version_id": *"(\w+)"', file.read(), re.DOTALL)
    if ids is None:
        raise InvalidInput(f"{file.name} is not the output of `truss push --output json`: run `make push`.")
    target = Target(ids[1], "deployment", ids[2])
    if not os.environ.get("BASETEN_API_KEY"):  # Truss may have read a key from ~/.trussrc
        command = " ".join(["fast-truss doctor", *target.arguments()])
        return print(f"Pushed. For the first image and its cold start, set BASETEN_API_KEY and run: {command}")
    sys.exit(not after_the_push(Client(target, on_pause=tell_pause), timeout))


def before_the_push(project: Path) -> bool:
    """Check the secrets and weights that the first start needs."""
    secrets: list[str] = []
    repos: list[tuple[str, str | None, list[str]]] = []

    def read() -> str:
        import yaml

        config = yaml.safe_load((project / "config.yaml").read_text("utf-8"))
        secrets.extend(config.get("secrets") or {})
        repos.extend(_repos(config))
        return f"repositories of weights: {len(repos)}"

    good = [check("config.yaml", read, NO_CONFIG), check("key and secrets", lambda: _secrets(secrets))]
    good += [check(f"weights of {repo[0]}", functools.partial(_weights, *repo), NO_WEIGHTS) for repo in repos]
    return all(good)


def after_the_push(client: Client, timeout: float, with_image: bool = True) -> bool:
    """Check the status and generate one image."""
    good = check("status", lambda: _status(client))
    return good and (not with_image or check("image", lambda: _image(client, timeout)))


def check(name: str, look: Callable[[], str], cure: str = "") -> bool:
    """Print the result of look, or its error with the cure. Returns whether it succeeded."""
    try:
        good, found = True, look()
    except Exception as error:  # from YAML, the Hub, the disk, or an unexpected structure in config.yaml
        kind = "" if isinstance(error, ClientError) else f"{type(error).__name__}: "
        good, found = False, f"{kind}{error} {cure}"
    typer.secho("ok      " if good else "failed  ", fg="green" if good else "red", nl=False)
    print(f"{name}: {' '.join(printable(found).split())}")
    return good


def _repos(config: dict[str, Any]) -> Iterator[tuple[str, str | None, list[str]]]:
    """Yield name, commit and file patterns of each cached or mounted repository."""
    for cached in config.get("model_cache") or []:
        yield cached["repo_id"], cached.get("revision"), cached.get("allow_patterns") or ["*"]
    for mounted in config.get("weights") or []:
        scheme, _, address = mounted["source"].partition("://")
        if scheme == "hf":
            repo_id, _, revision = address.partition("@")
            yield repo_id, revision or None, mounted.get("allow_patterns") or ["*"]


def _secrets(wanted: list[str]) -> str:
    client = Client(Target("none"), on_pause=tell_pause)  # secrets belong to the workspace, not to a model
    there = {secret.name for secret in client.ask_management("get_secrets").secrets}
    if missing := ", ".join(name for name in wanted if name not in there):
        raise ClientError(f"This workspace has no {missing}: add it on Baseten, under Settings, Secrets.")
    return f"the key works, secrets needed: {', '.join(wanted) or 'none'}"


def _weights(repo_id: str, revision: str | None, patterns: list[str]) -> str:
    import huggingface_hub as hub

    there = [each.rfilename for each in hub.HfApi().model_info(repo_id, revision=revision).siblings or []]
    # Baseten's patterns: only `*` is special, and it also matches `/`.
    rules = {pattern: ".*".join(map(re.escape, pattern.split("*"))) for pattern in patterns}
    found = {pattern: [file for file in there if re.fullmatch(rule, file)] for pattern, rule in rules.items()}
    if missing := ", ".join(pattern for pattern, files in found.items() if not files):
        raise ClientError(f"Commit {revision} has no {missing}.")
    # A gated repository lists its files publicly but refuses to serve them, so request one.
    hub.get_hf_file_metadata(hub.hf_hub_url(repo_id, found[patterns[0]][0], revision=revision))
    return f"all files are available at {revision}"


def _status(client: Client) -> str:
    status = client.status()
    status.raise_if_failed()
    return f"{status.status}, {replicas(status.replicas)}"


def _image(client: Client, timeout: float) -> str:
    answer = client.generate(**fields.example(client, timeout), timeout=timeout)
    found = f"image.png, {Path('image.png').write_bytes(image_bytes(answer)[0])} bytes"
    # Only a replica's first answer has it.
    phases = (answer.get("timings") or {}).get("cold_start") or {}
    listed = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items())
    return f"{found}, cold start {sum(phases.values()):.1f} s ({listed})" if phases else found

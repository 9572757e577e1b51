"""Checks before a push and after it. Each is one line with its cure; the worst decides the exit status."""

import dataclasses
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss import Client, ClientError, image_bytes
from fast_truss.console import replicas, tell_pause
from fast_truss.options import AsJson, Where

COLORS = {"ok": "green", "skipped": "yellow", "warning": "yellow", "failed": "red"}
SECTIONS = {"secrets": dict, "resources": dict, "model_cache": list, "weights": list}


@dataclasses.dataclass(frozen=True)
class Check:
    """outcome: a key of COLORS. cure: what to do, if it is not ok."""

    name: str
    outcome: str
    found: str
    cure: str = ""


def doctor(
    where: Where,
    project: Annotated[Path, typer.Option(help="The folder of config.yaml.")] = Path("."),
    image: Annotated[bool, typer.Option(help="Generate one image, which wakes the model and costs a little.")] = True,
    as_json: AsJson = False,
) -> None:
    """Check all that a push needs, and after it (with --model or --url) that the model answers."""
    pushed = bool(where.model) or where.url is not None
    # Before the first push there is no ID.
    target = (where if pushed else dataclasses.replace(where, model="none")).target
    checks: list[Iterator[Check]] = []
    try:
        client: Client | ClientError = Client(target, url=where.url, on_pause=tell_pause)
    except ClientError as error:
        if where.url is not None:  # nothing is left to check
            raise
        client = error
    if where.url is None:
        checks.append(before_the_push(client, project))
    if pushed and isinstance(client, Client):
        checks.append(after_the_push(client, where.timeout, image))
    if not run(itertools.chain(*checks), as_json):
        sys.exit(1)


def before_the_push(client: Client | ClientError, project: Path) -> Iterator[Check]:
    """Yield a check for each thing outside the project that would make a push or a first start fail.

    client: or why there is none.
    """
    config = _config(project)
    if isinstance(config, Check):
        yield config
        config = {}
    key = _checked("key", lambda: _workspace(client), "put a key of your workspace into BASETEN_API_KEY")
    yield key
    if key.outcome == "ok" and isinstance(client, Client) and config:
        yield _secrets(client, list(config.get("secrets") or {}))
        yield _accelerator(client, str((config.get("resources") or {}).get("accelerator") or ""))
    yield from map(_weights, _repos(config))


def after_the_push(client: Client, timeout: float, with_image: bool, output: Path | None = None) -> Iterator[Check]:
    """Yield the status, one image, and its cold start. output: the file, a .png, that the image goes into."""
    status = _checked("status", lambda: _status(client), "`truss push` first, and check the ID of the model")
    yield status
    if status.outcome == "failed":
        return
    if client.target.is_production and not client.local:
        yield _checked("promoted", lambda: _promoted(client), "truss push --environment production, or promote it")
    if not with_image:
        return
    answer: dict[str, Any] = {}

    def image() -> str:
        answer.update(client.generate("a lighthouse on a cliff at dawn", timeout=timeout))
        content = image_bytes(answer)[0]
        try:
            if output:
                output.write_bytes(content)
        except OSError as error:
            raise ClientError(f"{output} cannot be written ({error.strerror})") from None
        return f"{f'{output}, ' if output else ''}{len(content)} bytes, {answer.get('content_type')}"

    yield _checked("image", image, "read the log of the deployment on Baseten")
    phases = (answer.get("timings") or {}).get("cold_start") or {}
    found = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items())
    told = Check("cold start", "skipped", "an earlier answer of this replica held it", "`coldstart` measures one")
    yield Check("cold start", "ok", f"{sum(phases.values()):.1f} s ({found})") if phases else told


def run(checks: Iterator[Check], as_json: bool) -> bool:
    """Print each check as it is done. Returns whether none failed."""
    from rich.console import Console
    from rich.text import Text

    console, done = Console(highlight=False, soft_wrap=True), []
    for check in checks:
        done.append(check)
        if not as_json:
            console.print(Text.assemble((f"{check.outcome:<8}", COLORS[check.outcome]), f"{check.name}: {check.found}"))
            if check.cure and check.outcome != "ok":
                console.print(Text(f"        {check.cure}."))
    if as_json:
        print(json.dumps([dataclasses.asdict(check) for check in done]))
    return all(check.outcome != "failed" for check in done)


def _checked(name: str, look: Callable[[], str | Check], cure: str) -> Check:
    try:
        found = look()
    except ClientError as error:
        return Check(name, "failed", str(error), cure)
    return found if isinstance(found, Check) else Check(name, "ok", found)


def _config(project: Path) -> dict[str, Any] | Check:
    import yaml

    try:
        config = yaml.safe_load((project / "config.yaml").read_text("utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        return Check("config.yaml", "failed", " ".join(str(error).split()), "name the project's folder with --project")
    if isinstance(config, dict) and all(isinstance(config.get(key) or kind(), kind) for key, kind in SECTIONS.items()):
        return config
    return Check("config.yaml", "failed", "it is not the config.yaml of a Truss", "run `make check`, which says more")


def _workspace(client: Client | ClientError) -> str:
    if isinstance(client, ClientError):
        raise client
    user = client.ask_management("get_users_me")
    return f"it works{f' in {user.workspace_name}' if user.workspace_name else ''}"


def _secrets(client: Client, wanted: list[str]) -> Check:
    def look() -> str:
        there = {secret.name for secret in client.ask_management("get_secrets").secrets}
        if missing := [name for name in wanted if name not in there]:
            raise ClientError(f"{', '.join(missing)} is not in this workspace")
        return f"{', '.join(wanted)} is there" if wanted else "none needed"

    return _checked("secrets", look, "put it there on Baseten, under Settings, Secrets")


def _accelerator(client: Client, wanted: str) -> Check:
    kind, _, count = wanted.partition(":")

    def plain(name: str | None) -> str:
        return re.sub(r"[^A-Z0-9]", "", (name or "").upper())

    def look() -> str | Check:
        if not kind:
            return "none needed"
        there = [each for each in client.ask_management("get_instance_types").instance_types if each.gpu_count]
        if any(plain(each.gpu_type) == plain(kind) and each.gpu_count >= int(count or 1) for each in there):
            return f"{wanted} can be had"
        names = ", ".join(sorted({f"{each.gpu_type}:{each.gpu_count}" for each in there})) or "none"
        found = f"{wanted} is not among the instance types of this workspace, which are {names}"
        return Check("accelerator", "warning", found, "ask Baseten for it, or name another one in config.yaml")

    return _checked("accelerator", look, "look at the instance types on Baseten")


def _repos(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return repo_id, revision and allow_patterns of each repository that is cached or mounted."""
    found = [repo for repo in config.get("model_cache") or [] if isinstance(repo, dict)]
    for source in config.get("weights") or []:
        scheme, _, address = str(source.get("source") if isinstance(source, dict) else "").partition("://")
        if scheme == "hf":
            repo_id, _, revision = address.partition("@")
            found.append({**source, "repo_id": repo_id, "revision": revision or None})
    return found


def _weights(repo: dict[str, Any]) -> Check:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    api = huggingface_hub.HfApi(token=os.environ.get("HF_TOKEN") or None)
    name, repo_id, revision = f"weights of {repo.get('repo_id')}", repo.get("repo_id"), repo.get("revision")

    def look() -> str | Check:
        try:
            there = [each.rfilename for each in api.model_info(str(repo_id), revision=revision).siblings or []]
            files: list[str] = []
            for pattern in repo.get("allow_patterns") or ["*"]:
                # As Baseten reads a pattern: only `*` means something, and it crosses `/`.
                wanted = re.compile(".*".join(map(re.escape, pattern.split("*"))))
                matching = [file for file in there if wanted.fullmatch(file)]
                if not matching:
                    raise ClientError(f"commit {revision} does not hold {pattern}")
                files += matching
            # The list of a gated repository is public, its files are not: so ask for one.
            url = huggingface_hub.hf_hub_url(str(repo_id), files[0], revision=revision)
            huggingface_hub.get_hf_file_metadata(url, token=api.token or False)
        except HfHubHTTPError as error:
            reason = " ".join(str(error.server_message or "").split())
            raise ClientError(f"{type(error).__name__} {error.response.status_code} {reason}".strip()) from None
        except ClientError:
            raise
        except Exception as error:  # of HTTP, or what nobody should write in config.yaml
            found = f"{api.endpoint} cannot be reached: {' '.join(str(error).split())}"
            return Check(name, "failed", found, "check the network, or HF_ENDPOINT if you set it")
        return f"{len(set(files))} files can be reached at {str(revision)[:12]}"

    cure = "check the commit and the files in config.yaml; for a gated repository ask for access, and set HF_TOKEN"
    return _checked(name, look, cure)


def _status(client: Client) -> str:
    status = client.status()
    status.raise_if_failed()
    return f"{status.status}, {replicas(status.replicas)}"


def _promoted(client: Client) -> str | Check:
    deployments = client.ask_management("get_models_deployments", model_id=client.target.model_id).deployments
    served = client.status().deployment_id
    pushed = [each for each in deployments if not each.is_development]
    newest = max(pushed, key=lambda each: each.created_at, default=None)
    if newest is None or newest.id == served:
        return f"production serves the newest deployment, {served}"
    found = f"production serves {served}, and {newest.id} is newer"
    return Check("promoted", "warning", found, "`truss push --environment production` pushes and promotes")

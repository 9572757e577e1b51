"""Builds the image that Baseten would build, and starts what is in it, without a container engine.

buildah runs the Dockerfile that Truss writes. Truss's base image holds Ubuntu, Python and uv; Debian with the same
Python takes its place here, as nothing but Debian's and Python's packages can be had everywhere. Needs root.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUITE = "bookworm"  # its python3 is 3.11, as config.yaml asks
PACKAGES = "python3,python3-pip,python3-venv,ca-certificates,curl,git"
UV = "uv==0.10.0"  # what the Dockerfile would fetch
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
TOOLS = ("buildah", "debootstrap", "unshare", "chroot")
NON_ROOT = 60000  # Truss's user, where it does not run the server as root
# Truss installs a newer Python from GitHub for its live reload. Where only package registries can be reached, the
# image's own Python takes its place.
UV_WITHOUT_DOWNLOADS = """#!/bin/sh
case "$1 $2" in
  "python install") exit 0 ;;
  "venv "*) exec /usr/local/bin/uv-itself venv "$2" --python /usr/bin/python3 ;;
esac
exec /usr/local/bin/uv-itself "$@"
"""
BASE_DOCKERFILE = f"""FROM scratch
ADD base.tar /
RUN pip install --quiet --break-system-packages --no-cache-dir {UV} && mv /usr/local/bin/uv /usr/local/bin/uv-itself
COPY uv /usr/local/bin/uv
"""


def what_is_missing() -> str | None:
    """Return the reason why no image can be built here, or None."""
    if os.geteuid() != 0:
        return "an image is built as root, and this is not root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def run(*command: Any, **options: Any) -> str:
    """Run command and return its output. If it fails, the error has the end of the output."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if result.returncode:
        raise RuntimeError(
            f"{command[0]} ended with {result.returncode}:\n{result.stdout[-2000:]}{result.stderr[-4000:]}"
        )
    return result.stdout


def build_base(name: str, cache: Path) -> None:
    """Make the image `name`, that the Dockerfile begins with, unless it is there."""
    base = cache / f"{SUITE}.tar"
    if subprocess.run(["buildah", "inspect", "--type=image", name], capture_output=True).returncode == 0:
        return
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        folder = Path(temporary)
        if not base.is_file():
            run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, folder / "root")
            with tarfile.open(folder / base.name, "w") as tar:
                tar.add(folder / "root", arcname=".")
            (folder / base.name).rename(base)
        context = folder / "context"
        context.mkdir()
        os.link(base, context / "base.tar")
        (context / "Dockerfile").write_text(BASE_DOCKERFILE, "utf-8")
        (context / "uv").write_text(UV_WITHOUT_DOWNLOADS, "utf-8")
        (context / "uv").chmod(0o755)
        bud(context, name, folder / "log")


def bud(context: Path, name: str, log: Path, *options: str) -> None:
    """Build context. Raises RuntimeError with the end of the log, which is kept whole in the file log."""
    command = ["buildah", "bud", "--isolation", "chroot", "--network", "host", "--layers", "--pull-never"]
    if Path(CERTIFICATES).is_file():  # also those that this machine's own network needs
        command += ["-v", "/etc/ssl/certs:/etc/ssl/certs:ro", "--env", f"SSL_CERT_FILE={CERTIFICATES}"]
    with log.open("w") as output:
        result = subprocess.run([*command, *options, "-t", name, context], stdout=output, stderr=subprocess.STDOUT)
    if result.returncode:
        raise RuntimeError(f"The image could not be built:\n{log.read_text()[-4000:]}")


def build(context: Path, name: str, cache: Path, log: Path) -> None:
    """Build Truss's build context as it is. What did not change since the last time is not built again."""
    dockerfile = (context / "Dockerfile").read_text("utf-8")
    base = re.search(r"^FROM (\S+)", dockerfile, re.MULTILINE)[1]
    build_base(f"docker.io/{base}", cache)
    bud(context, name, log)


@dataclasses.dataclass(frozen=True)
class Container:
    """A container of an image. root: its files; changes are discarded at the end."""

    root: Path
    environment: dict[str, str]
    entrypoint: list[str]

    def command(
        self,
        *arguments: Any,
        user: int = 0,
        mounts: dict[Path, str] | None = None,
        writable: dict[Path, str] | None = None,
    ) -> list[str]:
        """Return a command that runs arguments (the server, if there are none) in the container.

        It is process 1 of its own, as in a container, and all that it started ends with it.
        mounts: folders of this machine, and where they are in the container, read-only. writable: the same, not so.
        """
        root = self.root
        script = [f"mount --rbind /dev {root}/dev", f"mount --rbind -o ro /sys {root}/sys"]
        for options, folders in (("bind,ro", mounts), ("bind", writable)):
            for source, target in (folders or {}).items():
                script += [f"mkdir -p {root}{target}", f"mount -o {options} '{source}' {root}{target}"]
        script.append(f'exec chroot --userspec={user}:{user} {root} sh -c \'cd /app && exec "$@"\' sh "$@"')
        inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc"]
        return [*inside, "sh", "-ec", "; ".join(script), "sh", *(str(part) for part in arguments or self.entrypoint)]

    def run(self, *arguments: Any, **options: Any) -> subprocess.CompletedProcess:
        """Run arguments in it, and keep what they print. options: those of command."""
        command = self.command(*arguments, **options)
        return subprocess.run(command, env=self.environment, capture_output=True, text=True)


@contextlib.contextmanager
def container(image: str, **variables: str) -> Iterator[Container]:
    """Yield a container of image. variables: environment variables in addition to the image's."""
    name = run("buildah", "from", "--pull-never", image).strip()
    try:
        root = Path(run("buildah", "mount", name).strip())
        config = json.loads(run("buildah", "inspect", "--type=image", image))["OCIv1"]["config"]
        (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n", "utf-8")  # as every container engine does
        environment = dict(variable.split("=", 1) for variable in config["Env"])
        yield Container(root, {**environment, **variables}, config["Entrypoint"])
    finally:
        run("buildah", "umount", name)
        run("buildah", "rm", name)


def stop(process: subprocess.Popen) -> None:
    """End what Container.command started, in a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))

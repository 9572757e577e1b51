"""Puts autoscaling settings back, whatever happens to the command that changed them.

`fast-truss.restore` is a process in a session of its own. It reads what to put back from one line of its stdin,
says that it is there, and waits for the end of that input. It comes when the command asks for it, and also when the
command is killed, in any way.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fast_truss.api import Client
from fast_truss.errors import ClientError, ConnectionLost, Unreachable
from fast_truss.rules import Wait
from fast_truss.target import Target

PROJECT = Path(__file__).resolve().parent.parent
RESTORE_SECONDS = 600.0
CHECK_SECONDS = 2.0


def command_for(target: Target, settings: dict[str, int]) -> str:
    """Return the command line that puts the settings back by hand."""
    changes = [f"--{name.replace('_', '-')} {value}" for name, value in settings.items()]
    return " ".join(["fast-truss autoscaling", *target.arguments(), *changes])


@contextlib.contextmanager
def put_back_afterwards(target: Target, settings: dict[str, int], lock: int) -> Iterator[Any]:
    """Put the settings back at the end of the block, or of this process. Yields a function that does it earlier.

    lock: a file descriptor that stays open until they are back. Raises ClientError if they could not be put back.
    """
    job = json.dumps({"target": dataclasses.asdict(target), "settings": settings})
    process = subprocess.Popen(
        [sys.executable, "-m", "fast_truss.restore"],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C or the end of the terminal does not reach it
        pass_fds=[lock],
    )
    assert process.stdin and process.stdout  # these pipes
    process.stdin.write(job + "\n")
    process.stdin.flush()
    # Only when it is there may anything be changed.
    if process.stdout.readline().strip() != "ready":
        raise ClientError("The process that puts the settings back did not start. Nothing was changed.")
    try:
        yield process.stdin.close
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        if process.wait() != 0:
            raise ClientError(f"The settings were NOT put back. Do it by hand: {command_for(target, settings)}")


def put_back(client: Client, settings: dict[str, int], timeout: float = RESTORE_SECONDS) -> None:
    """Set the settings, until Baseten says that they are so. Raises ClientError after timeout seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            client.autoscaling(max(deadline - time.monotonic(), 1), **settings)
            now = client.autoscaling(max(deadline - time.monotonic(), 1))
        except (Unreachable, ConnectionLost):
            # The address is right: the command was there just now. So the network is down, and comes back.
            if time.monotonic() > deadline:
                raise
        else:
            # A change may wait in a queue. Where Baseten does not tell the settings, its answer has to do.
            if not now or all(now.get(name) == value for name, value in settings.items()):
                return
            if time.monotonic() > deadline:
                raise ClientError("Baseten still tells other settings.")
        time.sleep(CHECK_SECONDS)


def main() -> None:
    """Wait for the end of stdin, and put back. Exits with 1 if that failed."""
    line = sys.stdin.readline()
    if not line:
        return  # the command has ended already, and changed nothing
    job = json.loads(line)
    target, settings = Target(**job["target"]), job["settings"]
    client = Client(target, on_pause=_say)
    try:
        os.write(sys.stdout.fileno(), b"ready\n")
    except BrokenPipeError:
        return  # the same
    sys.stdin.read()
    try:
        put_back(client, settings)
    except ClientError as error:
        _say(f"{error}\nThe settings were NOT put back. Do it by hand: {command_for(target, settings)}")
        sys.exit(1)
    _say("The settings are as before: " + ", ".join(f"{name} {value}" for name, value in settings.items()) + ".")


def _say(what: str | Wait) -> None:
    # The terminal may be gone.
    with contextlib.suppress(OSError):
        text = what if isinstance(what, str) else f"{what.reason} Trying again in {what.seconds:.0f} s."
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""The command `app`: where the page listens, who may open it, and what it shows."""

import asyncio
import contextlib
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fast_truss import AsyncClient, ClientError, InvalidInput, NotFound
from fast_truss.fields import PROMPT_ALONE, Field, fields_of
from fast_truss.options import Where

LOGIN = "FAST_TRUSS_APP_LOGIN"
LISTEN = f"Address to listen on. A public one, such as 0.0.0.0, needs a login: {LOGIN}=user:password."
NO_FIELDS = "This deployment has no /schema: only the prompt can be set here."


def serve(
    where: Where,
    listen: Annotated[str, typer.Option(help=LISTEN)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 7860,
) -> None:
    """Serve a page for colleagues. Opening it wakes the model."""
    client, login = where.async_client(), login_of(listen)
    try:
        socket.create_server((listen, port), family=socket.AF_INET6 if ":" in listen else socket.AF_INET).close()
    except OSError as error:
        raise InvalidInput(f"Cannot listen on {listen}, --port {port} ({error.strerror}): choose another.") from None
    try:
        from fast_truss import page
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed: pip install 'fast-truss[page]'.") from None
    # gradio requests its own address at startup, which must not go through a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost", listen]))
    blocks = page.page(client, *asyncio.run(describe(client, where.timeout)))
    css = Path(page.__file__).with_name("page.css")
    shown: dict[str, Any] = {"css_paths": css, "footer_links": [], "quiet": True, "prevent_thread_lock": True}
    blocks.launch(server_name=listen, server_port=port, auth=login, **shown)
    hosts = ["127.0.0.1", socket.gethostname()] if listen in ("0.0.0.0", "::") else [listen]
    print("Open", *(f"http://{f'[{host}]' if ':' in host else host}:{port}" for host in hosts), flush=True)
    blocks.block_thread()


def login_of(listen: str) -> tuple[str, str] | None:
    """Return user and password of the page, None if it listens only on this machine. Raises InvalidInput."""
    given = os.environ.get(LOGIN, "")
    with contextlib.suppress(ValueError):
        if not given and (listen == "localhost" or ipaddress.ip_address(listen).is_loopback):
            return None
    if not given and sys.stdin.isatty():
        user = typer.prompt("User for the page", err=True)
        given = f"{user}:{typer.prompt('Password', hide_input=True, err=True)}"
    user, _, password = given.partition(":")
    if not user or not password:
        raise InvalidInput(f"A page on {listen} needs a login: set {LOGIN} to user:password.")
    return user, password


async def describe(client: AsyncClient, timeout: float) -> tuple[str, list[Field], str]:
    """Return the title, the fields and the note of the page. Wakes the model, which serves its schema."""
    if not (status := await client.status()).ready:
        print(f"The model is {status.status}. Waking it to read its fields.", file=sys.stderr)
        await client.wake()
        await client.wait_until_ready(timeout)
    title = "Text to image"
    with contextlib.suppress(ClientError):  # a local server has no name
        title = (await client.ask_management("get_models_model_id", model_id=client.target.model_id)).name
    try:
        return title, fields_of(await client.schema(timeout)), ""
    except NotFound:
        print(NO_FIELDS, file=sys.stderr)
        return title, fields_of(PROMPT_ALONE), NO_FIELDS

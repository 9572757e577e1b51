"""Client: AsyncClient for code without asyncio. Its event loop runs in a thread, so Jupyter's own is no hindrance."""

import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from fast_truss.client import AsyncClient
from fast_truss.deployment import Target
from fast_truss.policy import Wait

Result = TypeVar("Result")
P = ParamSpec("P")


def _call(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate["Client", P], Result]:
    """Return a method that returns what the method of AsyncClient does."""

    @functools.wraps(method)
    def call(self: "Client", /, *arguments: P.args, **named: P.kwargs) -> Result:
        with self._portals as portal:
            result: Result = _result(portal, functools.partial(method, self._client, *arguments, **named))
            return result

    return call


def _each(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[Result, None]],
) -> Callable[Concatenate["Client", P], Generator[Result, None, None]]:
    """Return a generator of what the method of AsyncClient yields."""

    @functools.wraps(method)
    def each(self: "Client", /, *arguments: P.args, **named: P.kwargs) -> Generator[Result, None, None]:
        items, end = method(self._client, *arguments, **named), object()
        with self._portals as portal:
            try:
                while (item := _result(portal, anext, items, end)) is not end:
                    yield item
            finally:
                # One that Ctrl-C ended may still be at its end.
                with contextlib.suppress(RuntimeError):
                    _result(portal, items.aclose)

    return each


def _result(portal: Any, ask: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of ask, run in the portal's thread. What ends the wait for it, such as Ctrl-C, ends it."""
    future = portal.start_task_soon(ask, *arguments)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class Client:
    """Wakes, watches and calls the model. Ctrl-C ends the running call, and closes its connection.

    In a `with` block it keeps its connections; outside, each call makes its own. on_pause runs in another thread.
    """

    def __init__(
        self,
        target: Target,
        url: str | None = None,
        on_pause: Callable[[Wait], None] | None = None,
        transport: Any = None,
    ) -> None:
        from anyio.from_thread import BlockingPortalProvider

        self._client = AsyncClient(target, url, on_pause, transport)
        self.target, self.local = target, self._client.local
        self._portals = BlockingPortalProvider()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            portal = stack.enter_context(self._portals)
            stack.enter_context(portal.wrap_async_context_manager(self._client))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)

    wake = _call(AsyncClient.wake)
    status = _call(AsyncClient.status)
    watch = _each(AsyncClient.watch)
    wait_until_ready = _call(AsyncClient.wait_until_ready)
    generate = _call(AsyncClient.generate)
    events = _each(AsyncClient.events)
    schema = _call(AsyncClient.schema)
    autoscaling = _call(AsyncClient.autoscaling)
    startups = _call(AsyncClient.startups)
    startups_summary = _call(AsyncClient.startups_summary)
    ask_management = _call(AsyncClient.ask_management)
    change_management = _call(AsyncClient.change_management)

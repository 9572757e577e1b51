"""Client: AsyncClient for code without asyncio. Its event loop runs in a thread, so it also works in Jupyter."""

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
    """Return the blocking version of a coroutine method of AsyncClient."""

    @functools.wraps(method)
    def call(self: "Client", /, *arguments: P.args, **named: P.kwargs) -> Result:
        with self._portals as portal:
            result: Result = _result(portal, functools.partial(method, self._client, *arguments, **named))
            return result

    return call


def _each(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[Result, None]],
) -> Callable[Concatenate["Client", P], Generator[Result, None, None]]:
    """Return the blocking version of an async generator method of AsyncClient."""

    @functools.wraps(method)
    def each(self: "Client", /, *arguments: P.args, **named: P.kwargs) -> Generator[Result, None, None]:
        items, end = method(self._client, *arguments, **named), object()
        with self._portals as portal:
            try:
                while (item := _result(portal, anext, items, end)) is not end:
                    yield item
            finally:
                # After Ctrl-C the generator may still be closing.
                with contextlib.suppress(RuntimeError):
                    _result(portal, items.aclose)

    return each


def _result(portal: Any, ask: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of ask, run in the portal's thread. An exception in the wait, such as Ctrl-C, cancels it."""
    future = portal.start_task_soon(ask, *arguments)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class Client:
    """Wakes, watches and calls the model. Ctrl-C cancels the running call and closes its connection.

    In a `with` block it reuses connections; outside, each call opens its own. on_pause runs in another thread.
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

"""Work that lives as long as its client stays connected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from starlette.types import Receive, Scope

from pagemill.api.errors import ClientDisconnected

CONNECTION = "pagemill.connection"  # in ASGI's scope["extensions"], where the server has it
_LOOK_SECONDS = 0.25

T = TypeVar("T")
Idle = Callable[[], Awaitable[None]]


class Connection(Protocol):
    """A client whose body nobody reads, so that ASGI's `receive` cannot tell that it has left."""

    def has_left(self) -> bool:
        """Whether its side is closed, however much it has sent before."""
        ...

    def abort(self) -> None:
        """Drop the connection, and what was not read of it."""
        ...


async def run_while_connected(
    work: Coroutine[Any, Any, T],
    receive: Receive,
    *,
    on_tick: Idle | None = None,
    tick_seconds: float | None = None,
) -> T:
    """The result of `work`; a client that leaves cancels it. Raises ClientDisconnected.

    The request's body must have been read. `on_tick` is awaited every `tick_seconds`; if it
    raises, `work` is cancelled and the exception goes to the caller.
    """
    return await _race(work, _watch(receive, on_tick, tick_seconds))


async def run_unless_left(work: Coroutine[Any, Any, T], scope: Scope) -> T:
    """The result of `work`, which need not read the body; a client that leaves cancels it.

    Raises ClientDisconnected. Where the server has no `Connection`, `work` runs to its end.
    """
    connection: Connection | None = (scope.get("extensions") or {}).get(CONNECTION)
    return await work if connection is None else await _race(work, _look(connection))


async def _race(work: Coroutine[Any, Any, T], watch: Coroutine[Any, Any, None]) -> T:
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(watch)
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        watcher.result()
        raise ClientDisconnected
    finally:
        await _cancel(watcher)
        await _cancel(task)


async def _watch(receive: Receive, on_tick: Idle | None, tick_seconds: float | None) -> None:
    while True:
        try:
            async with asyncio.timeout(tick_seconds):
                message = await receive()
        except TimeoutError:
            assert on_tick is not None
            await on_tick()
            continue
        if message["type"] == "http.disconnect":
            return


async def _look(connection: Connection) -> None:
    while not connection.has_left():
        await asyncio.sleep(_LOOK_SECONDS)
    connection.abort()
    await asyncio.sleep(0)  # the server hears of it: nothing is answered any more


async def _cancel(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # so that asyncio does not report it as never retrieved

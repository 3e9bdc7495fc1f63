"""Work that lives as long as its client stays connected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from pagemill.api.errors import ClientDisconnected

T = TypeVar("T")
Idle = Callable[[], Awaitable[None]]


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
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_watch(receive, on_tick, tick_seconds))
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


async def _cancel(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # so that asyncio does not report it as never retrieved

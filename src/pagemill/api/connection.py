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
Tick = Callable[[], Awaitable[None]]


class Connection(Protocol):
    """What the server knows of a client, beyond what ASGI's `receive` can tell."""

    def on_left(self, tell: Callable[[], None] | None) -> bool:
        """Call `tell` when the connection is lost, or nobody; False if it is lost already.

        The request's body must have been read: a connection of which nobody reads loses nothing.
        """
        ...

    def has_left(self) -> bool:
        """Whether the client's side is closed, however much it has sent that nobody reads."""
        ...

    def abort(self) -> None:
        """Drop the connection, and what was not read of it."""
        ...


def connection_of(scope: Scope) -> Connection | None:
    """The server's view of the client, if it has one."""
    connection: Connection | None = (scope.get("extensions") or {}).get(CONNECTION)
    return connection


async def run_while_connected(
    work: Coroutine[Any, Any, T],
    receive: Receive,
    connection: Connection | None = None,
    *,
    on_tick: Tick | None = None,
    tick_seconds: float = 0.0,
) -> T:
    """The result of `work`; a client that leaves cancels it. Raises ClientDisconnected.

    The request's body must have been read. `on_tick` is awaited every `tick_seconds`; if it
    raises, `work` is cancelled and the exception goes to the caller. Without a `connection`, a
    task waits for `receive` to tell.
    """
    watch = _Watch(on_tick, tick_seconds)
    if not watch.begin(receive, connection):
        work.close()
        raise ClientDisconnected
    try:
        return await work
    except asyncio.CancelledError:
        watch.raise_cause()
        raise
    finally:
        await watch.end()


class _Watch:
    """Cancels the task that made it when the client has left or a tick has failed.

    It has no task of its own while nothing happens: every stream has one.
    """

    def __init__(self, on_tick: Tick | None, tick_seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._loop = task.get_loop()
        self._on_tick = on_tick
        self._tick_seconds = tick_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._helpers: set[asyncio.Task[None]] = set()
        self._connection: Connection | None = None
        self._cause: BaseException | None = None
        self._is_over = False

    def begin(self, receive: Receive, connection: Connection | None) -> bool:
        """False when the client has left already."""
        self._connection = connection
        if connection is None:
            self._start(_wait_until_left(receive), self._leave)
        elif not connection.on_left(self._leave):
            return False
        self._wait_for_tick()
        return True

    def raise_cause(self) -> None:
        """Raise why the task was cancelled, unless others wanted it, too."""
        if self._cause is not None and self._task.uncancel() <= self._cancelling:
            raise self._cause from None

    async def end(self) -> None:
        self._is_over = True
        if self._connection is not None:
            self._connection.on_left(None)
        if self._timer is not None:
            self._timer.cancel()
        for helper in list(self._helpers):
            await _cancel(helper)

    def _leave(self) -> None:
        self._cancel_for(ClientDisconnected())

    def _cancel_for(self, cause: BaseException) -> None:
        if self._cause is None and not self._is_over:
            self._cause = cause
            self._task.cancel()

    def _wait_for_tick(self) -> None:
        if self._on_tick is not None:
            self._timer = self._loop.call_later(self._tick_seconds, self._tick, self._on_tick)

    def _tick(self, on_tick: Tick) -> None:
        self._start(on_tick(), self._wait_for_tick)

    def _start(self, work: Awaitable[None], then: Callable[[], None]) -> None:
        """Run `work` beside the task, and `then` when it is done; if it fails, so does the task."""

        def done(helper: asyncio.Task[None]) -> None:
            self._helpers.discard(helper)
            if helper.cancelled():
                return
            error = helper.exception()
            if error is not None:
                self._cancel_for(error)
            elif not self._is_over:
                then()

        helper = asyncio.ensure_future(work)
        self._helpers.add(helper)
        helper.add_done_callback(done)


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def run_unless_left(work: Coroutine[Any, Any, T], scope: Scope) -> T:
    """The result of `work`, which need not read the body; a client that leaves cancels it.

    Raises ClientDisconnected. Where the server has no `Connection`, `work` runs to its end.
    """
    connection = connection_of(scope)
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

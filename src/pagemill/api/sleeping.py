"""`/sleep`, `/wake_up` and `/is_sleeping`: give the device's memory up for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.connection import run_while_connected
from pagemill.api.context import ServerContext
from pagemill.api.errors import ClientDisconnected
from pagemill.api.responses import SleepResponse
from pagemill.api.streaming import json_response
from pagemill.errors import InvalidParams, RequestError

DRAIN_SECONDS = 30.0
MAX_DRAIN_SECONDS = 3600.0
_POLL_SECONDS = 0.05
_KNOWN_SECONDS = 2.0  # within which every frontend has heard of it
_LEVELS = {"1": 1, "2": 2}
_TIMEOUTS = {"wait": DRAIN_SECONDS, "abort": 0.0}


class SleepInterrupted(RequestError):
    """The model was woken while it waited for requests to end."""

    status = 409
    kind = "ConflictError"


async def sleep(context: ServerContext, request: Request) -> Response:
    """Refuse requests, let those that run end, and free the device's memory.

    `level` 1 keeps the weights in the host's memory, 2 drops them. What runs after `timeout`
    seconds is aborted, with `mode=abort` at once; of several calls the least patient one counts.
    Until then a client that leaves, or `wake_up`, calls it off.
    """
    query = _query(request, ("level", "mode", "timeout"))
    level = _LEVELS.get(query.get("level", "1"))
    if level is None:
        raise InvalidParams("level must be 1 or 2", param="level")
    timeout = _timeout(query)
    context.require_loaded()
    with _deadline(context, timeout):
        await run_while_connected(context.sleep_lock.acquire(), request.receive)
        try:
            await _fall_asleep(context, level, request)
        finally:
            context.sleep_lock.release()
    return _state(context)


async def wake_up(context: ServerContext, request: Request) -> Response:
    """Take the memory back, load the weights if they were dropped, and serve again."""
    _query(request, ())
    context.require_loaded()
    context.num_waking += 1
    try:
        async with context.sleep_lock:
            await _wake(context)
    finally:
        context.num_waking -= 1
    return _state(context)


async def is_sleeping(context: ServerContext, request: Request) -> Response:
    """Whether the model sleeps, or is going to."""
    return _state(context)


@contextmanager
def _deadline(context: ServerContext, timeout: float) -> Iterator[None]:
    """Whoever holds the lock waits for requests no longer than any of those behind it would."""
    deadline = context.clock.monotonic() + timeout
    context.sleep_deadlines.append(deadline)
    try:
        yield
    finally:
        context.sleep_deadlines.remove(deadline)


async def _fall_asleep(context: ServerContext, level: int, request: Request) -> None:
    slept = context.client.stats.sleep_level > 0
    try:
        await run_while_connected(_let_end(context, level), request.receive)
    except (SleepInterrupted, ClientDisconnected):
        if not slept:
            await _wake(context)
        raise
    await context.client.control("sleep", level)
    await _until(lambda: context.client.stats.sleep_level == level)


async def _wake(context: ServerContext) -> None:
    await context.client.control("wake_up")
    await _until(lambda: not context.client.stats.sleep_level)


async def _let_end(context: ServerContext, level: int) -> None:
    """Until nothing runs or the time is over. Raises SleepInterrupted."""
    while await context.client.control("prepare_sleep", level):
        if context.num_waking:
            raise SleepInterrupted("The model was woken before it slept")
        if context.clock.monotonic() >= min(context.sleep_deadlines):
            return
        await asyncio.sleep(_POLL_SECONDS)


def _state(context: ServerContext) -> Response:
    level = context.client.stats.sleep_level
    return json_response(SleepResponse(is_sleeping=level > 0, level=level))


def _query(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    """The query's parameters, which must be known."""
    for name in request.query_params:
        if name not in known:
            raise InvalidParams(f"{name[:100]}: unknown parameter of the query", param=name[:100])
    return dict(request.query_params)


def _timeout(query: dict[str, str]) -> float:
    mode = query.get("mode", "wait")
    if mode not in _TIMEOUTS:
        raise InvalidParams("mode must be wait or abort", param="mode")
    try:
        timeout = float(query.get("timeout", _TIMEOUTS[mode]))
    except ValueError:
        timeout = -1.0
    if not 0 <= timeout <= MAX_DRAIN_SECONDS:
        message = f"timeout must be from 0 to {MAX_DRAIN_SECONDS:g} seconds"
        raise InvalidParams(message, param="timeout")
    return timeout


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for the engine's next numbers, which follow at once."""
    try:
        async with asyncio.timeout(_KNOWN_SECONDS):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        return

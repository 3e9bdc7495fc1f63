"""Waits for the model: the tokenizer is read here while the engine loads the weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pagemill.api.context import ServerContext
from pagemill.cli.frontend import load_text, open_for_requests
from pagemill.frontend.client import ZmqEngineClient
from pagemill.frontend.text_side import TextSide
from pagemill.prepare import Plan

POLL_SECONDS = 0.05


async def load(
    plan: Plan, context: ServerContext, client: ZmqEngineClient, report: Callable[[str], None]
) -> None:
    """Make `context` ready for requests; see `wait_loaded`."""
    open_for_requests(context, client, await wait_loaded(plan, client, report))


async def wait_loaded(
    plan: Plan, client: ZmqEngineClient, report: Callable[[str], None]
) -> TextSide:
    """Wait for the engine and read the files beside; `report` gets the engine's phases.

    Raises EngineDeadError or ModelLoadError with the cause.
    """
    text_side = asyncio.create_task(asyncio.to_thread(load_text, plan))
    ready = asyncio.create_task(client.wait_ready())
    pending: set[asyncio.Task[Any]] = {text_side, ready}
    while pending:
        report(client.status.phase)
        done, pending = await asyncio.wait(pending, timeout=POLL_SECONDS)
        for task in done:
            task.result()  # raises what went wrong, without waiting for the other
    return text_side.result()

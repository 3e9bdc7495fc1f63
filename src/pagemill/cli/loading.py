"""Waits for the model: the tokenizer is read here while the engine loads the weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pagemill.api.context import ServerContext
from pagemill.frontend.client import ZmqEngineClient
from pagemill.frontend.text_side import TextSide, load_text_side
from pagemill.prepare import Plan

POLL_SECONDS = 0.05


async def load(
    plan: Plan, context: ServerContext, client: ZmqEngineClient, report: Callable[[str], None]
) -> None:
    """Make `context` ready for requests; `report` gets the engine's phases, again and again.

    Raises EngineDeadError or ModelLoadError with the cause.
    """
    text_side = asyncio.create_task(asyncio.to_thread(_load_text_side, plan))
    ready = asyncio.create_task(client.wait_ready())
    pending: set[asyncio.Task[Any]] = {text_side, ready}
    while pending:
        report(client.status.phase)
        done, pending = await asyncio.wait(pending, timeout=POLL_SECONDS)
        for task in done:
            task.result()  # raises what went wrong, without waiting for the other
    loaded = text_side.result()
    client.attach(loaded.validator, loaded.tokenizer)
    loaded.renderer.max_model_len = client.info.max_model_len
    context.renderer = loaded.renderer


def _load_text_side(plan: Plan) -> TextSide:
    return load_text_side(
        plan.checkpoint,
        plan.model,
        max_logprobs=plan.config.max_logprobs,
        chat_template=plan.chat_template,
    )

"""A one-slot mailbox: a reader that falls behind finds one merged update, never a queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pagemill.frontend.outputs import ChoiceUpdate

Tap = Callable[[ChoiceUpdate], bool]


class Mailbox:
    """Between the engine's outputs and one request's reader, on one event loop.

    Holds at most one update for each choice, so its memory is bounded by the output itself. While
    the reader waits, having dealt with all that came before, a `tap` is offered each update first
    and takes it by returning True; the reader then never sees it.
    """

    __slots__ = ("_tap", "_updates", "_waiter")

    def __init__(self, tap: Tap | None = None) -> None:
        self._updates: dict[int, ChoiceUpdate] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._tap = tap

    def put(self, update: ChoiceUpdate) -> None:
        reader = self._waiter
        if reader is not None and not reader.done() and self._tap is not None and self._tap(update):
            return
        waiting = self._updates.get(update.index)
        if waiting is None:
            self._updates[update.index] = update
        else:
            merge_update(waiting, update)
        if reader is not None and not reader.done():
            reader.set_result(None)

    async def take(self) -> list[ChoiceUpdate]:
        """All updates since the last call, one for each choice; waits for the first."""
        if not self._updates:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        updates, self._updates = list(self._updates.values()), {}
        return updates


def merge_update(update: ChoiceUpdate, later: ChoiceUpdate) -> None:
    """Append `later` to `update`, both of the same choice."""
    update.text += later.text
    update.token_ids += later.token_ids
    if later.logprobs is not None:
        update.logprobs = (update.logprobs or []) + later.logprobs
    if later.prompt_logprobs is not None:
        update.prompt_logprobs = later.prompt_logprobs
    update.finish_reason = later.finish_reason
    update.stop_reason = later.stop_reason
    update.num_cached_tokens = later.num_cached_tokens
    update.error = later.error
    update.error_param = later.error_param
    update.scheduled_time = later.scheduled_time
    update.num_preemptions = later.num_preemptions

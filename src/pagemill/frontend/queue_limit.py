"""How many requests may wait, and when a refused one should come back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from pagemill.errors import OverloadedError
from pagemill.frontend.board import Board, LoneBoard

_SMOOTHING = 0.1  # weight of the newest interval in the moving average
_MAX_RETRY_SECONDS = 60


class QueueLimit:
    """Counts open engine requests: those that the engine can run, and `max_queued` more.

    The prompts that have no first token yet may have `max_tokens` tokens together (0: any number);
    a single one may have more when no other waits.
    """

    def __init__(
        self,
        max_queued: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_tokens: int = 0,
        board: Board | None = None,
    ) -> None:
        self._max_queued = max_queued
        self._max_tokens = max_tokens
        self._num_tokens = 0  # of prompts without a first token
        self._board = board or LoneBoard()
        self._clock = clock
        self._last_finish: float | None = None
        self._interval = 1.0  # seconds between finished requests, a moving average

    def check(self, num_new: int, num_open: int, max_running: int) -> None:
        """Raises OverloadedError when `num_new` more requests do not fit."""
        excess = num_open + num_new - max_running - self._max_queued
        if excess > 0:
            raise self._full(f"{self._max_queued} requests", excess)

    def queue(self, num_tokens: int) -> None:
        """Prompts of so many tokens will wait; raises OverloadedError when they are too many."""
        waiting = self._num_tokens + self._board.queued_tokens_elsewhere()
        if self._max_tokens and waiting and waiting + num_tokens > self._max_tokens:
            raise self._full(f"prompts of {waiting} tokens", 1)
        self._note(num_tokens)

    def started(self, num_tokens: int) -> None:
        """Prompts of so many tokens wait no longer."""
        self._note(-num_tokens)

    def _note(self, num_tokens: int) -> None:
        self._num_tokens += num_tokens
        self._board.set_queued_tokens(self._num_tokens)

    def _full(self, what: str, excess: int) -> OverloadedError:
        wait = min(_MAX_RETRY_SECONDS, max(1, math.ceil(excess * self._interval)))
        return OverloadedError(
            f"the queue is full ({what} are waiting); try again in {wait} s", retry_after=wait
        )

    def finished(self) -> None:
        """Take note that one request is done."""
        now = self._clock()
        if self._last_finish is not None:
            self._interval += _SMOOTHING * (now - self._last_finish - self._interval)
        self._last_finish = now

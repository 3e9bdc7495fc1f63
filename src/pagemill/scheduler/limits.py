"""Caps on the known text that a request may compute in a step; a new constraint is a class here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pagemill.scheduler.request import Request


class Limit(Protocol):
    """Asked for every request with known text to compute, in the order of importance."""

    def begin_step(self) -> None: ...

    def cap(self, request: Request, num_query: int) -> int:
        """How many of `num_query` tokens the request may compute; 0 = not this step."""
        ...

    def take(self, request: Request, num_query: int) -> None:
        """The request will compute `num_query` tokens, at most what `cap` said."""
        ...


class TokenBudget:
    """At most `size` query tokens in a step, those of decoding requests included."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = size

    def begin_step(self) -> None:
        self.left = self.size

    def cap(self, request: Request, num_query: int) -> int:
        return min(num_query, self.left)

    def take(self, request: Request, num_query: int) -> None:
        self.left -= num_query


class SeqBudget:
    """A request that does not run yet needs a free slot."""

    def __init__(self, num_free_slots: Callable[[], int]) -> None:
        self._num_free_slots = num_free_slots

    def begin_step(self) -> None:
        pass

    def cap(self, request: Request, num_query: int) -> int:
        return num_query if request.slot >= 0 or self._num_free_slots() else 0

    def take(self, request: Request, num_query: int) -> None:
        pass


class PrefillShare:
    """While others wait, long prompts together take at most a share of the token budget.

    A prompt is long while its rest exceeds the share, so short prompts always find room beside
    long ones however many of those there are.
    """

    def __init__(self, share: float, budget: int, contended: Callable[[], bool]) -> None:
        self._size = max(1, int(share * budget))
        self._contended = contended
        self._left = self._size
        self._long: Request | None = None

    def begin_step(self) -> None:
        self._left = self._size

    def cap(self, request: Request, num_query: int) -> int:
        self._long = request if num_query > self._size and self._contended() else None
        return num_query if self._long is None else self._left

    def take(self, request: Request, num_query: int) -> None:
        if request is self._long:
            self._left -= num_query


class WholePrompts:
    """A prompt is computed in one step or not at all. Asked last, after what may cut it."""

    def begin_step(self) -> None:
        pass

    def cap(self, request: Request, num_query: int) -> int:
        return num_query if num_query == len(request.token_ids) else 0

    def take(self, request: Request, num_query: int) -> None:
        pass

"""What rendering one chat template may cost: CPU time, and characters made on the way."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sized, ValuesView
from collections.abc import Set as AbstractSet
from typing import Any

from pagemill.errors import InvalidParams

_TICKS_PER_CLOCK = 8
_LARGE = 1 << 16  # weights from which the clock is read at once


class TemplateTooExpensive(InvalidParams):
    """Rendering was stopped at its limit."""


class Budget:
    """Counts what one rendering has used; raises TemplateTooExpensive when it is used up.

    Time is the thread's own CPU time, so that a busy machine does not fail honest requests.
    `max_size` bounds a single value, `max_total` all values made, in characters.
    """

    def __init__(self, seconds: float, max_size: int, max_total: int) -> None:
        self.max_size = max_size
        self._seconds = seconds
        self._deadline = time.thread_time() + seconds
        self._left = max_total
        self._ticks = 0

    def tick(self) -> None:
        """One step of work; called at least once for each iteration and each call."""
        self._ticks += 1
        if self._ticks % _TICKS_PER_CLOCK == 0:
            self.check_clock()

    def check_clock(self) -> None:
        if time.thread_time() > self._deadline:
            raise TemplateTooExpensive(
                f"the chat template took more than {self._seconds:g} s for these messages",
                param="messages",
            )

    def require_size(self, size: int) -> None:
        """Refuse a value of `size` characters before it is made."""
        if size > self.max_size:
            raise self._too_large()

    def charge(self, value: Any) -> Any:
        """Pay for a value that was just made, and return it."""
        self.tick()
        self.pay(self._weigh(value))
        return value

    def pay(self, size: int) -> None:
        self._left -= size
        if size > self.max_size or self._left < 0:
            raise self._too_large()
        if size > _LARGE:
            self.check_clock()

    def _too_large(self) -> TemplateTooExpensive:
        return TemplateTooExpensive(
            "the chat template makes too much text of these messages", param="messages"
        )

    def _weigh(self, value: Any) -> int:
        """Characters of a value written out; what is shared inside it counts every time."""
        weight = 0
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str | bytes):
                weight += len(item) + 1
            elif isinstance(item, int):
                weight += item.bit_length() // 3 + 1
            else:
                weight += 1
                stack.extend(_children(item))
            if weight > self.max_size:
                raise self._too_large()
        return weight


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | AbstractSet | ValuesView):
        return value
    return ()


class WatchedIterable:
    """An iterable whose every item is a tick."""

    def __init__(self, inner: Iterable[Any], budget: Budget) -> None:
        self._inner = inner
        self._budget = budget

    def __iter__(self) -> Iterator[Any]:
        for item in self._inner:
            self._budget.tick()
            yield item

    def __len__(self) -> int:
        if not isinstance(self._inner, Sized):
            raise TypeError(f"{type(self._inner).__name__} has no length")
        return len(self._inner)

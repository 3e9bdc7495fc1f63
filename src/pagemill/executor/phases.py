"""How long the parts of a start took."""

from __future__ import annotations

import time
from collections.abc import Callable


class Phases:
    """One after the other; `clock` gives seconds."""

    def __init__(self, first: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started = [(first, clock())]

    def begin(self, name: str) -> None:
        """End the phase before."""
        self._started.append((name, self._clock()))

    def summary(self) -> str:
        """One line for the user, up to now."""
        ends = [start for _, start in self._started[1:]] + [self._clock()]
        spent = [
            f"{name} {end - start:.1f} s"
            for (name, start), end in zip(self._started, ends, strict=True)
        ]
        total = ends[-1] - self._started[0][1]
        return f"engine up in {total:.1f} s ({', '.join(spent)})"

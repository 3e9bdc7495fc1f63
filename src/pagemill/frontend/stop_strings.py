"""Finds stop strings in text that arrives in pieces, whatever the pieces are."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Releases text up to the first stop string, the first being the one that ends first.

    Of two that end together the longer one counts, so nothing of it is ever released. Held back
    is only the longest suffix that may still grow into a stop string.
    """

    __slots__ = ("_held", "_include", "_longest", "_starts", "_stops")

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include_in_output
        self._longest = max(map(len, stops))
        self._starts = frozenset(stop[0] for stop in stops)
        self._held = ""

    def add(self, text: str, *, match: bool = True) -> tuple[str, str | None]:
        """The text released by the new `text`, and the stop string that it completed, if any.

        With `match` off (`min_tokens`), stop strings that end inside `text` do not count; one that
        begins here and ends later does. After a match nothing more may be added.
        """
        num_held = len(self._held)
        text = self._held + text
        if match:
            found = self._first_match(text, num_held)
            if found is not None:
                begin, stop = found
                self._held = ""
                return text[: begin + len(stop) if self._include else begin], stop
        cut = self._hold_from(text)
        self._held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """What is held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str, num_held: int) -> tuple[int, str] | None:
        """Begin and stop string of the match that ends first, beyond the held text."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            begin = text.find(stop, max(0, num_held - len(stop) + 1))
            if begin >= 0:
                match = (begin + len(stop), begin, stop)
                best = match if best is None else min(best, match)
        return None if best is None else (best[1], best[2])

    def _hold_from(self, text: str) -> int:
        """Where the longest suffix begins that a stop string properly begins with."""
        for begin in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[begin] in self._starts:
                suffix = text[begin:]
                size = len(suffix)
                if any(len(stop) > size and stop.startswith(suffix) for stop in self._stops):
                    return begin
        return len(text)

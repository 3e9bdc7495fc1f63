"""Text that arrives in pieces, read by coroutines that wait where a decision needs more of it.

A reader is a generator that yields whenever the text at hand does not decide what comes next. So
every decision depends on the text alone, never on where it was cut, and a stream is parsed just
as the whole text would be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]  # yields for more text, returns what it read
Emit: TypeAlias = Callable[[str], None]

MAX_DEPTH = 64
_VISIBLE = re.compile(r"\S")
_SCALAR_END = re.compile(r"[\s,\]}]")
_CLOSERS = {"{": "}", "[": "]"}


class Source:
    """The text of one choice. What comes next is at `position`.

    While `hold` is on nothing is dropped, so that a reader may go back to an earlier position.
    """

    def __init__(self) -> None:
        self.text = ""
        self.position = 0
        self.hold = False
        self.ended = False

    def feed(self, text: str) -> None:
        """Add text; what was read is dropped unless held."""
        if self.hold:
            self.text += text
        else:
            self.text = self.text[self.position :] + text
            self.position = 0

    def end(self) -> None:
        """No more text will come."""
        self.ended = True

    def take(self, end: int) -> str:
        """Read up to the offset `end`."""
        piece = self.text[self.position : end]
        self.position = end
        return piece

    def more(self) -> Reading[bool]:
        """Wait for text; False when there is none left and none will come."""
        while self.position >= len(self.text):
            if self.ended:
                return False
            yield
        return True

    def space(self) -> Reading[str]:
        """Read white space, up to the first other character or the end."""
        pieces = []
        while (yield from self.more()):
            found = _VISIBLE.search(self.text, self.position)
            pieces.append(self.take(found.start() if found else len(self.text)))
            if found:
                break
        return "".join(pieces)

    def literal(self, *options: str) -> Reading[str | None]:
        """Read the longest of `options` that comes next; None, reading nothing, if none does."""
        while True:
            for option in sorted(options, key=len, reverse=True):
                if self.text.startswith(option, self.position):
                    self.position += len(option)
                    return option
                if not self.ended and option.startswith(self.text[self.position :]):
                    break  # it may still become this one
            else:
                return None
            yield

    def stream_until(self, markers: tuple[str, ...], emit: Emit) -> Reading[str | None]:
        """Hand on the text before the first of `markers`, and read that; None at the end."""
        pattern = any_of(markers)
        while True:
            found = pattern.search(self.text, self.position)
            decided = len(self.text) if self.ended else self._undecided(markers)
            if found and (self.ended or found.start() < decided):
                emit(self.take(found.start()))
                self.position = found.end()
                return found.group()
            emit(self.take(decided))
            if self.ended:
                return None
            yield

    def rest(self, emit: Emit) -> Reading[None]:
        """Hand on everything to the end."""
        while (yield from self.more()):
            emit(self.take(len(self.text)))

    def until(self, *markers: str, limit: int) -> Reading[tuple[str, str | None]]:
        """The text before the first of `markers`, and which it was; None for the marker at the
        end, and when none comes within `limit` characters."""
        pieces: list[str] = []
        size = 0

        def keep(piece: str) -> None:
            nonlocal size
            size += len(piece)
            pieces.append(piece)

        reading = self.stream_until(markers, keep)
        marker: str | None = None
        while size <= limit:
            try:
                next(reading)
            except StopIteration as stop:
                marker = stop.value
                break
            yield
        return "".join(pieces), marker if size <= limit else None

    def peek(self) -> Reading[str]:
        """The next character, not read; empty at the end."""
        return self.text[self.position] if (yield from self.more()) else ""

    def json_value(self, emit: Emit) -> Reading[bool]:
        """Hand on one JSON value as it is written; False when it does not end.

        Only brackets and quotes are checked: this finds the value's end, no more.
        """
        first = yield from self.peek()
        if not first or first in '"{[':
            return (yield from self.balanced(emit, quotes='"'))
        while (yield from self.more()):
            found = _SCALAR_END.search(self.text, self.position)
            piece = self.take(found.start() if found else len(self.text))
            if piece:
                emit(piece)
            if found:
                break
        return True

    def balanced(self, emit: Emit, *, quotes: str) -> Reading[bool]:
        """Hand on the text up to the bracket or quote that closes the first one."""
        scan = BracketScan(quotes)
        while (yield from self.more()):
            end, done = scan.advance(self.text, self.position)
            emit(self.take(end))
            if done or scan.broken:
                return done
        return False

    def _undecided(self, markers: tuple[str, ...]) -> int:
        """Where a marker may have begun that is not complete yet; the end when none has."""
        longest = max(map(len, markers))
        for start in range(max(self.position, len(self.text) - longest + 1), len(self.text)):
            tail = self.text[start:]
            if any(len(tail) < len(m) and m.startswith(tail) for m in markers):
                return start
        return len(self.text)


def any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the markers, the longest that fits (compiled patterns are cached by `re`)."""
    ordered = sorted(markers, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)))


class BracketScan:
    """Follows brackets and quoted texts to the end of the value that they began."""

    def __init__(self, quotes: str) -> None:
        self.broken = False  # brackets that do not match, or too many of them
        self._quotes = quotes
        self._expected: list[str] = []
        self._quote = ""
        self._escaped = False
        self._special = re.compile(rf"[\\\[\]{{}}{quotes}]")

    def advance(self, text: str, start: int) -> tuple[int, bool]:
        """How far the value reaches from `start`, and whether it ends there."""
        position = start
        if self._escaped and position < len(text):
            self._escaped = False
            position += 1
        while found := self._special.search(text, position):
            position = found.end()
            char = found.group()
            if char == "\\" and self._quote:
                if position == len(text):
                    self._escaped = True
                position += 1
            elif self._step(char) or self.broken:
                return position, not self.broken
        return len(text), False

    def _step(self, char: str) -> bool:
        """Take one bracket or quote; whether the value is complete."""
        if self._quote:
            if char != self._quote:
                return False
            self._quote = ""
        elif char in self._quotes:
            self._quote = char
            return False
        elif char in _CLOSERS:
            self._expected.append(_CLOSERS[char])
            self.broken = len(self._expected) > MAX_DEPTH
            return False
        elif char in "]}" and (not self._expected or self._expected.pop() != char):
            self.broken = True
            return False
        return not self._expected

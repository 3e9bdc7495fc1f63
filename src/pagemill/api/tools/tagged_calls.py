"""Calls whose arguments are marked by tags, one by one; a call is passed on when it is complete."""

from __future__ import annotations

from dataclasses import dataclass

from pagemill.api.tools.calls import MAX_CALL, Calls
from pagemill.api.tools.source import Reading


@dataclass(frozen=True)
class TaggedBody:
    """A function's name and its arguments, each between tags, up to one of `ends`.

    An argument is `key_open` key `key_close` `value_open` value `value_close`. `opening` stands
    before the name where the opener is not that already, `name_end` after it.
    """

    key_open: str
    key_close: str
    value_open: str
    value_close: str
    ends: tuple[str, ...]
    opening: str = ""
    name_end: str = ""
    close: str = ""

    def read(self, calls: Calls, opener: str) -> Reading[bool]:
        """Read the call after an opener; False where the text is something else."""
        source = calls.source
        if self.opening and opener != self.opening:
            yield from source.space()
            if (yield from source.literal(self.opening)) is None:
                return False
        text, end = yield from source.until(*self.ends, limit=MAX_CALL)
        if end is None or not self._pass_on(calls, text):
            return False
        if self.close and end != self.close:
            yield from source.space()
            yield from source.literal(self.close)
        return True

    def _pass_on(self, calls: Calls, text: str) -> bool:
        if self.name_end:
            name, found, rest = text.partition(self.name_end)
        else:
            name, found, rest = text.partition(self.key_open)
            rest = found + rest
        name = name.strip()
        arguments = self._arguments(rest)
        if arguments is None or not calls.accepts(name):
            return False
        typed = {key: calls.typed(name, key, value) for key, value in arguments.items()}
        return calls.whole(name, typed)

    def _arguments(self, text: str) -> dict[str, str] | None:
        *chunks, tail = text.split(self.value_close)
        arguments: dict[str, str] = {}
        for chunk in map(str.lstrip, chunks):
            key, closed, value = chunk.removeprefix(self.key_open).partition(self.key_close)
            if self.value_open:
                value = value.lstrip()
            if not (chunk.startswith(self.key_open) and closed):
                return None
            if not value.startswith(self.value_open):
                return None
            arguments[key.strip()] = _without_frame(value.removeprefix(self.value_open))
        return None if tail.strip() else arguments


def _without_frame(value: str) -> str:
    """Without the line breaks that set a value apart from its tags."""
    return value.removeprefix("\n").removesuffix("\n")

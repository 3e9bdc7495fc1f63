"""Calls whose arguments stand in the text as JSON; they are streamed as they come."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pagemill.api.tools.calls import MAX_HEAD, Calls
from pagemill.api.tools.source import Reading, Source

_ARGUMENTS = ("arguments", "parameters")
_MEMBERS = ("name", "type", "id", *_ARGUMENTS)


@dataclass(frozen=True)
class JsonBody:
    """One object {"name", "arguments"}, a list of them, or several with semicolons between."""

    close: str = ""

    def read(self, calls: Calls, opener: str) -> Reading[bool]:
        """Read the calls after an opener; False where the text is something else."""
        source = calls.source
        yield from source.space()
        if (yield from source.peek()) == "[":
            done = yield from _list(calls)
        else:
            done = yield from _sequence(calls)
        if done and self.close:
            yield from source.space()
            yield from source.literal(self.close)
        return done


@dataclass(frozen=True)
class NamedBody:
    """A function's name, one of `separators`, and its arguments as an object.

    DeepSeek-V3 writes "function", the separator, the name, and the object in a fence; Mistral may
    put an id before its last separator, or write a list instead; Kimi writes
    "functions.<name>:<index>".
    """

    separators: tuple[str, ...]
    close: str = ""
    id_separator: str = ""

    def read(self, calls: Calls, opener: str) -> Reading[bool]:
        """Read the call after an opener; False where the text is something else."""
        source = calls.source
        yield from source.space()
        if (yield from source.peek()) == "[":
            return (yield from _list(calls))
        head, marker = yield from source.until(*self.separators, "{", limit=MAX_HEAD)
        if marker and marker == self.id_separator:
            _, marker = yield from source.until(*self.separators, limit=MAX_HEAD)
        fenced = head.strip() == "function" and marker != "{"
        if fenced:
            head, marker = yield from source.until("\n", limit=MAX_HEAD)
            yield from source.space()
            yield from source.literal("```json")
        if marker is None:
            return False
        if marker == "{":
            source.position -= 1
        if not (yield from _object(calls, _bare_name(head))):
            return False
        if fenced:
            yield from source.space()
            yield from source.literal("```")
        if self.close:
            yield from source.space()
            yield from source.literal(self.close)
        return True


def _bare_name(head: str) -> str:
    name = head.strip().removeprefix("functions.")
    stem, colon, index = name.rpartition(":")
    return stem if colon and index.isdigit() else name


def _object(calls: Calls, name: str) -> Reading[bool]:
    yield from calls.source.space()
    if not calls.accepts(name) or (yield from calls.source.peek()) != "{":
        return False
    calls.begin(name)
    return (yield from calls.source.json_value(calls.output.arguments))


def _list(calls: Calls) -> Reading[bool]:
    source = calls.source
    yield from source.literal("[")
    separator: str | None = ","
    while separator == ",":
        yield from source.space()
        if not (yield from calls.attempt(_call(calls))):
            return False
        yield from source.space()
        separator = yield from source.literal(",", "]")
    return separator == "]"


def _sequence(calls: Calls) -> Reading[bool]:
    source = calls.source
    while True:
        yield from source.space()
        if not (yield from calls.attempt(_call(calls))):
            return False
        yield from source.space()
        if (yield from source.literal(";")) is None:
            return True


def _call(calls: Calls) -> Reading[bool]:
    """One object, with its members in any order."""
    source = calls.source
    if (yield from source.literal("{")) is None:
        return False
    name, arguments, begun = "", "null", False
    separator: str | None = ","
    while separator == ",":
        key = yield from _key(source)
        if key is None or (calls.bare and key not in _MEMBERS):
            return False
        if key == "name" and not name:
            name = (yield from _string(source)) or ""
            if not calls.accepts(name):
                return False
        elif key in _ARGUMENTS and name and not begun and (yield from source.peek()) == "{":
            calls.begin(name)
            begun = True
            if not (yield from source.json_value(calls.output.arguments)):
                return False
        else:
            value: list[str] = []
            if not (yield from source.json_value(value.append)):
                return False
            if key in _ARGUMENTS:
                arguments = "".join(value)
        yield from source.space()
        separator = yield from source.literal(",", "}")
    if separator is None or begun:
        return begun and separator is not None
    return _late(calls, name, arguments)


def _late(calls: Calls, name: str, text: str) -> bool:
    """A call whose arguments came first, as a string, or not at all."""
    arguments = _parsed(text)
    if isinstance(arguments, str):
        arguments = _parsed(arguments)
    if not name or not isinstance(arguments, dict | None):
        return False
    return calls.whole(name, arguments or {})


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return ""


def _key(source: Source) -> Reading[str | None]:
    """A member's key and its colon."""
    yield from source.space()
    key = yield from _string(source)
    yield from source.space()
    if key is None or (yield from source.literal(":")) is None:
        return None
    yield from source.space()
    return key


def _string(source: Source) -> Reading[str | None]:
    if (yield from source.peek()) != '"':
        return None
    pieces: list[str] = []
    if not (yield from source.json_value(pieces.append)):
        return None
    value = _parsed("".join(pieces))
    return value or None

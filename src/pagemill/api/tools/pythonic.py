"""Calls written as a Python list, `[f(a=1), g(b="x")]`: parsed as syntax, never evaluated."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import Any

from pagemill.api.tools.calls import MAX_HEAD, Calls
from pagemill.api.tools.source import Reading

MAX_LIST = 1 << 16  # characters
_WORDS = {"true": True, "false": False, "null": None}


class NotLiteral(ValueError):
    """An expression that is more than a value."""


@dataclass(frozen=True)
class PythonicBody:
    """A list of calls with keyword arguments, which are literals."""

    close: str = ""

    def read(self, calls: Calls, opener: str) -> Reading[bool]:
        """Read the list after an opener; False where the text is something else."""
        source = calls.source
        yield from source.space()
        start = source.position
        if (yield from source.literal("[")) is None:
            return False
        name, found = yield from source.until("(", limit=MAX_HEAD)
        if found is None or not calls.accepts(name.strip()):
            return False
        source.position = start
        pieces: list[str] = []
        if not (yield from source.balanced(pieces.append, quotes="\"'")):
            return False
        if not _pass_on(calls, "".join(pieces)):
            return False
        if self.close:
            yield from source.space()
            yield from source.literal(self.close)
        return True


def _pass_on(calls: Calls, text: str) -> bool:
    try:
        found = parse_calls(text)
    except NotLiteral:
        return False
    if not all(calls.accepts(name) for name, _ in found):
        return False
    return all(calls.whole(name, arguments) for name, arguments in found)


def parse_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls of a list as (name, arguments). Raises NotLiteral."""
    if len(text) > MAX_LIST:
        raise NotLiteral("the list is too long")
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List):
            raise NotLiteral("not a list")
        return [_call(node) for node in tree.elts]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotLiteral(str(error)) from None


def _call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or node.args:
        raise NotLiteral("not a call with keywords")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise NotLiteral("not a keyword")
        arguments[keyword.arg] = _value(keyword.value)
    return _name(node.func), arguments


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=owner, attr=name):
            return f"{_name(owner)}.{name}"
    raise NotLiteral("not a name")


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | None as value):
            return value
        case ast.Constant(value=float() as number) if math.isfinite(number):
            return number
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_key(key): _value(value) for key, value in pairs}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float()) as operand):
            return -_value(operand)
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
    raise NotLiteral("not a literal")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise NotLiteral("not a text as key")

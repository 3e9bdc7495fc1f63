"""The references of a JSON schema: that they lead somewhere, and not too deep.

The compiler follows references by recursion, on a stack that ends the process when it is full.
"""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pagemill.errors import GrammarError

# Levels of objects and lists along references; some 3,000 of them fill a stack of 8 MiB.
MAX_LEVELS = 1_000
MAX_PARTS = 200_000  # counted again for every reference to them
_PARAM = "structured_outputs"


def walk(root: Any) -> Iterator[tuple[Any, int]]:
    """All parts of a schema with their depth; cannot recurse too deep itself."""
    stack: list[tuple[Any, int]] = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        yield node, depth
        children: Any = ()
        if isinstance(node, dict):
            children = node.values()
        elif isinstance(node, list):
            children = node
        stack.extend((child, depth + 1) for child in children)


def check_references(schema: dict[str, Any]) -> None:
    """Raises GrammarError for a reference that leads nowhere, or a schema too deep along them."""
    levels: dict[str, int] = {}
    edges: dict[str, set[str]] = {}
    waiting, num_parts = ["#"], 0
    while waiting:
        pointer = waiting.pop()
        if pointer in edges:
            continue
        parts = list(walk(_resolve(schema, pointer)))
        num_parts += len(parts)
        if num_parts > MAX_PARTS:
            raise GrammarError(f"the JSON schema refers to more than {MAX_PARTS} parts", _PARAM)
        levels[pointer] = 1 + max(depth for _, depth in parts)
        edges[pointer] = {target for node, _ in parts if (target := _target(node)) is not None}
        waiting += edges[pointer]
    _check_loops(schema, edges)
    if _deepest(levels, edges) > MAX_LEVELS:
        raise GrammarError(
            f"the JSON schema goes deeper than {MAX_LEVELS} levels along its references", _PARAM
        )


def _target(node: Any) -> str | None:
    reference = node.get("$ref") if isinstance(node, dict) else None
    if not isinstance(reference, str):
        return None
    if not reference.startswith("#"):
        raise GrammarError(
            f"$ref {reference[:100]!r} points outside the schema; only '#/…' is followed", _PARAM
        )
    return reference


def _check_loops(schema: dict[str, Any], edges: dict[str, set[str]]) -> None:
    """Refuse references that lead nowhere but to themselves."""
    sound: set[str] = set()
    for start in edges:
        seen: set[str] = set()
        pointer: str | None = start
        while pointer is not None and pointer not in sound:
            if pointer in seen:
                raise GrammarError(f"$ref {start[:100]!r} only refers to itself", _PARAM)
            seen.add(pointer)
            node = _resolve(schema, pointer)
            pointer = _target(node) if isinstance(node, dict) and len(node) == 1 else None
        sound |= seen


def _deepest(levels: dict[str, int], edges: dict[str, set[str]]) -> int:
    """The most levels on a way along references; where these go round, all that there are."""
    try:
        order = list(TopologicalSorter(edges).static_order())
    except CycleError:
        return sum(levels.values())
    below: dict[str, int] = {}
    for pointer in order:  # what a schema refers to comes before it
        below[pointer] = levels[pointer] + max((below[t] for t in edges[pointer]), default=0)
    return max(below.values())


def _resolve(schema: dict[str, Any], pointer: str) -> Any:
    """Follow a JSON pointer (RFC 6901) inside the schema."""
    current: Any = schema
    for part in pointer.removeprefix("#").strip("/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if key == "":
            continue
        if not isinstance(current, dict) or key not in current:
            raise GrammarError(f"$ref {pointer[:100]!r} points to nothing", _PARAM)
        current = current[key]
    return current

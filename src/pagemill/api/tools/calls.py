"""What the readers of all formats share: the source, the output, and the tools of the request."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagemill.api.tools.output import Output
from pagemill.api.tools.source import Reading, Source

MAX_HEAD = 512  # characters around a function's name
MAX_CALL = 1 << 18  # characters of a call that is read as a whole
_PYTHON_WORDS = {"True": True, "False": False}  # as some models write them
_NAME = re.compile(r"[\w.:/-]{1,256}")

Schemas = Mapping[str, Mapping[str, Any]]  # the parameters of every tool, by its name


@dataclass(slots=True)
class Calls:
    """The state of reading calls. `bare`: nothing marks them but their own form, so only calls of
    the request's tools are taken for calls."""

    source: Source
    output: Output
    tools: Schemas
    bare: bool = False

    def attempt(self, reading: Reading[bool]) -> Reading[bool]:
        """Run a reader; one that fails before it has begun a call has read nothing."""
        source, before = self.source, self.output.num_calls
        held, start = source.hold, source.position
        source.hold = True
        done = yield from reading
        if self.output.num_calls == before:
            source.hold = held
            if not done:
                source.position = start
        return done

    def accepts(self, name: str) -> bool:
        """Whether a call of this function may be passed on."""
        return name in self.tools or (not self.bare and _NAME.fullmatch(name) is not None)

    def begin(self, name: str) -> None:
        """A call begins for certain: nothing read so far can be content any more."""
        self.source.hold = False
        self.output.begin_call(name)

    def whole(self, name: str, arguments: Mapping[str, Any]) -> bool:
        """Pass on a call at once; False for arguments that JSON does not know."""
        try:
            text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair
            text = json.dumps(arguments)
        except (ValueError, TypeError, RecursionError):
            return False
        self.begin(name)
        self.output.arguments(text)
        return True

    def typed(self, function: str, parameter: str, text: str) -> Any:
        """The value of a parameter written without quotes, by the type in the tool's schema."""
        properties = self.tools.get(function, {}).get("properties")
        schema = properties.get(parameter) if isinstance(properties, dict) else None
        kinds = _kinds(schema)
        if kinds and kinds <= {"string", "null"}:
            return None if text == "null" and "null" in kinds else text
        if kinds == {"boolean"} and text in _PYTHON_WORDS:
            return _PYTHON_WORDS[text]
        try:
            return json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return text


def _kinds(schema: Any) -> set[str]:
    """The JSON types that a schema names, by itself, in its alternatives, or by its values."""
    if not isinstance(schema, dict):
        return set()
    named = schema.get("type")
    listed = named if isinstance(named, list) else [named]
    kinds: set[str] = {kind for kind in listed if isinstance(kind, str)}
    for key in ("anyOf", "oneOf"):
        for branch in _listed(schema, key):
            nested = branch.get("type") if isinstance(branch, dict) else None
            kinds.add(nested if isinstance(nested, str) else "any")
    values = _listed(schema, "enum")
    only_texts = bool(values) and all(isinstance(value, str) for value in values)
    return {"string"} if only_texts and not kinds else kinds


def _listed(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")

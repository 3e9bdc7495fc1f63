"""Reading the parts that Anthropic's messages and OpenAI's responses are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagemill.errors import InvalidParams


def joined_text(content: Any, where: str, keys: Mapping[str, str]) -> str:
    """A text, or the texts of a list of parts; `keys` has the member with the text by type.

    Raises InvalidParams.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidParams(f"{where} must be a text or a list of parts", param=where)
    return "\n".join(part_text(part, f"{where}[{i}]", keys) for i, part in enumerate(content))


def part_text(part: Any, where: str, keys: Mapping[str, str]) -> str:
    """The text of one part. Raises InvalidParams for parts that are not text."""
    kind = kind_of(part, where)
    if not isinstance(kind, str) or kind not in keys:
        raise InvalidParams(
            f"{where}.type is {str(kind)[:100]!r}, but this model takes text only",
            param=f"{where}.type",
        )
    return string_of(part, keys[kind], where)


def kind_of(part: Any, where: str) -> Any:
    """The type of a part. Raises InvalidParams for what is no object."""
    if not isinstance(part, dict):
        raise InvalidParams(f"{where} must be an object", param=where)
    return part.get("type")


def string_of(part: dict[str, Any], key: str, where: str) -> str:
    """A member that must be a text. Raises InvalidParams."""
    value = part.get(key)
    if not isinstance(value, str):
        raise InvalidParams(f"{where}.{key} must be a text", param=f"{where}.{key}")
    return value

"""Chat messages as clients send them, turned into what chat templates expect."""

from __future__ import annotations

import json
from typing import Any

from pagemill.errors import InvalidParams

_ROLES = ("assistant", "developer", "system", "tool", "user")
_PASSED_ON = ("name", "tool_call_id", "reasoning_content")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def normalise_messages(
    messages: list[dict[str, Any]], *, developer_role: bool = False
) -> list[dict[str, Any]]:
    """Plain messages: content a string, the arguments of tool calls an object.

    "developer" becomes "system" unless the template knows `developer_role`. Raises InvalidParams
    naming the message and field, as in `messages[2].content[0].type`.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidParams("messages must be a list with at least one message", "messages")
    return [_message(m, f"messages[{i}]", developer_role) for i, m in enumerate(messages)]


def _message(message: Any, where: str, developer_role: bool) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidParams(f"{where} must be an object", where)
    role = message.get("role")
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        raise InvalidParams(f"{where}.role must be one of {known}; got {role!r}", f"{where}.role")
    tool_calls = message.get("tool_calls") or []
    plain: dict[str, Any] = {
        "role": "system" if role == "developer" and not developer_role else role,
        "content": _content(message.get("content"), where, optional=role == "assistant"),
    }
    plain |= {key: message[key] for key in _PASSED_ON if message.get(key) is not None}
    if "reasoning_content" not in plain and isinstance(message.get("reasoning"), str):
        plain["reasoning_content"] = message["reasoning"]
    if tool_calls:
        plain["tool_calls"] = _tool_calls(tool_calls, f"{where}.tool_calls")
    return plain


def _content(content: Any, where: str, *, optional: bool) -> str:
    if isinstance(content, str):
        return content
    where = f"{where}.content"
    if content is None and optional:
        return ""  # an answer of tool calls only
    if not isinstance(content, list):
        raise InvalidParams(f"{where} must be a string or a list of text parts", where)
    return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise InvalidParams(
            f"{where}.type is {kind!r}, but this model takes text only", f"{where}.type"
        )
    key = _TEXT_PARTS[kind]
    text = part.get(key)
    if not isinstance(text, str):
        raise InvalidParams(f"{where}.{key} must be a string", f"{where}.{key}")
    return text


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise InvalidParams(f"{where} must be a list", where)
    return [_tool_call(call, f"{where}[{i}]") for i, call in enumerate(calls)]


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidParams(f"{where}.function must be an object with a name", f"{where}.function")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _parse_arguments(arguments, f"{where}.function.arguments")
    return {**call, "function": {**function, "arguments": arguments}}


def _parse_arguments(text: str, where: str) -> dict[str, Any]:
    """Templates print the arguments as JSON themselves, so they need the object."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidParams(f"{where} must be a JSON object", where)
    return arguments

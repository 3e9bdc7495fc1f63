"""Checks on chat messages, tools and template arguments, before the template sees them."""

from __future__ import annotations

from typing import Any

import msgspec

from pagemill.api.body import check_nesting, check_size
from pagemill.api.context import Limits
from pagemill.api.errors import describe_validation_error
from pagemill.api.schema import ChatMessage, ChatRequest, Tool
from pagemill.errors import InvalidParams

_RESERVED_KWARGS = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template"}
)


def _convert(value: Any, to: Any, name: str) -> None:
    """Check `value` against a type. Raises InvalidParams with a path that begins with `name`."""
    try:
        msgspec.convert(value, to)
    except msgspec.ValidationError as error:
        found = describe_validation_error(error)
        inner = found.param or ""
        path = f"{name}{inner}" if inner.startswith("[") else f"{name}.{inner}".rstrip(".")
        message = found.message.removeprefix(f"{inner}: ").removeprefix("request body: ")
        raise InvalidParams(f"{path}: {message}", param=path) from None


def check_messages(messages: list[dict[str, Any]], limits: Limits) -> list[dict[str, Any]]:
    """The messages without their null members. Raises InvalidParams.

    Members that are not known here go to the template as they are; clients send back answers
    with members that are null, which templates take for present.
    """
    if not messages:
        raise InvalidParams("messages must not be empty", param="messages")
    if len(messages) > limits.max_messages:
        raise InvalidParams(
            f"messages may hold at most {limits.max_messages} messages", param="messages"
        )
    _convert(messages, list[ChatMessage], "messages")
    check_nesting(messages, limits.max_nesting, "messages")
    for i, message in enumerate(messages):
        _check_content(message, f"messages[{i}]")
    return [
        {k: v for k, v in message.items() if v is not None or k == "content"}
        for message in messages
    ]


def _check_content(message: dict[str, Any], path: str) -> None:
    content = message.get("content")
    if content is None and message["role"] != "assistant":
        raise InvalidParams(f"{path}.content is missing", param=f"{path}.content")
    if not isinstance(content, list):
        return
    for j, part in enumerate(content):
        where = f"{path}.content[{j}]"
        kind = part.get("type")
        if kind not in ("text", "refusal"):
            raise InvalidParams(f"{where}: only text is accepted, got {kind!r:.100}", param=where)
        if not isinstance(part.get(kind), str):
            raise InvalidParams(f"{where}.{kind} must be a string", param=f"{where}.{kind}")


def check_tools(
    tools: list[dict[str, Any]] | None, choice: str | dict[str, Any] | None, limits: Limits
) -> list[dict[str, Any]] | None:
    """The tools for the template: none with `tool_choice` "none". Raises InvalidParams."""
    if tools is not None:
        if not 1 <= len(tools) <= limits.max_tools:
            raise InvalidParams(f"tools must hold 1 to {limits.max_tools} tools", param="tools")
        _convert(tools, list[Tool], "tools")
        check_nesting(tools, limits.max_nesting, "tools")
        check_size(tools, limits.max_schema_bytes, "tools")
    if choice is None or choice == "none":
        return None if choice == "none" else tools
    if tools is None:
        raise InvalidParams("tool_choice needs tools", param="tool_choice")
    if choice != "auto":
        raise InvalidParams(
            "tool_choice: only auto and none are supported by this server", param="tool_choice"
        )
    return tools


def template_kwargs(body: ChatRequest, limits: Limits) -> dict[str, Any]:
    """The request's arguments for the template. Raises InvalidParams."""
    name = "chat_template_kwargs"
    kwargs = checked_kwargs(body.chat_template_kwargs, limits, name)
    if body.reasoning_effort is not None:
        kwargs.setdefault("reasoning_effort", body.reasoning_effort)
    if body.documents is not None:
        check_nesting(body.documents, limits.max_nesting, "documents")
        kwargs.setdefault("documents", body.documents)
    return kwargs


def checked_kwargs(kwargs: dict[str, Any] | None, limits: Limits, name: str) -> dict[str, Any]:
    """A copy within bounds, that names nothing the server itself sets. Raises InvalidParams."""
    if not kwargs:
        return {}
    reserved = sorted(_RESERVED_KWARGS & kwargs.keys())
    if reserved:
        raise InvalidParams(f"{name} may not set {reserved[0]}", param=f"{name}.{reserved[0]}")
    check_nesting(kwargs, limits.max_nesting, name)
    check_size(kwargs, limits.max_template_kwargs_bytes, name)
    return dict(kwargs)

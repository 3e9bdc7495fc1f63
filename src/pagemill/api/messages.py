"""Checks on chat messages, tools and template arguments, before the template sees them."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from pagemill.api.body import check_nesting, check_size
from pagemill.api.context import Limits
from pagemill.api.errors import describe_validation_error
from pagemill.api.schema import ChatRequest, Tool
from pagemill.api.tools.choice import ToolChoice
from pagemill.errors import InvalidParams

MAX_REPORTED_MEMBERS = 16
_MESSAGE_MEMBERS = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content"}
)
_RESERVED_KWARGS = frozenset(
    {
        "self",
        "messages",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
    }
)


def check_messages(messages: list[dict[str, Any]], limits: Limits) -> list[str]:
    """Bound the messages; the members that no template is shown. Raises InvalidParams.

    Roles and contents are checked where they are rendered.
    """
    if len(messages) > limits.max_messages:
        raise InvalidParams(
            f"messages may hold at most {limits.max_messages} messages", param="messages"
        )
    check_nesting(messages, limits.max_nesting, "messages")
    unknown = {
        name
        for message in messages
        for name, value in message.items()
        if name not in _MESSAGE_MEMBERS and value not in (None, [])
    }
    return [f"messages[].{_header_safe(name)}" for name in sorted(unknown)[:MAX_REPORTED_MEMBERS]]


def _header_safe(name: str) -> str:
    """A client's own name, fit for a response header."""
    return re.sub(r"[^A-Za-z0-9._-]", "?", name[:64])


def check_tools(tools: list[dict[str, Any]] | None, limits: Limits) -> list[Tool]:
    """The tools, bounded and checked. Raises InvalidParams."""
    if tools is None:
        return []
    if not 1 <= len(tools) <= limits.max_tools:
        raise InvalidParams(f"tools must hold 1 to {limits.max_tools} tools", param="tools")
    checked = _typed(tools)
    check_nesting(tools, limits.max_nesting, "tools")
    check_size(tools, limits.max_schema_bytes, "tools")
    return checked


def read_tool_choice(body: ChatRequest, limits: Limits) -> ToolChoice:
    """What `tools`, `tool_choice` and `parallel_tool_calls` allow. Raises InvalidParams."""
    functions = [tool.function for tool in check_tools(body.tools, limits)]
    tools = {function.name: function.parameters or {} for function in functions}
    max_calls = 1 if body.parallel_tool_calls is False else None
    if body.tool_choice is not None and body.tool_choice != "none" and not tools:
        raise InvalidParams("tool_choice needs tools", param="tool_choice")
    match body.tool_choice:
        case None | "auto":
            return ToolChoice("auto" if tools else "none", tools, max_calls)
        case "none":
            return ToolChoice("none", tools, max_calls)
        case "required":
            return ToolChoice("required", tools, max_calls)
        case {"type": "function", "function": {"name": str() as name}} if name in tools:
            return ToolChoice("required", {name: tools[name]}, 1)
    raise InvalidParams(
        'tool_choice must be "auto", "none", "required" or name one of the tools, as in '
        '{"type": "function", "function": {"name": …}}',
        param="tool_choice",
    )


def _typed(tools: list[dict[str, Any]]) -> list[Tool]:
    try:
        return msgspec.convert(tools, list[Tool])
    except msgspec.ValidationError as error:
        raise describe_validation_error(error, within="tools") from None


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

"""From a responses request, with the conversation before it, to a chat request and back."""

from __future__ import annotations

import json
from typing import Any

from pagemill.api.blocks import joined_text, kind_of, string_of
from pagemill.api.responses_api.schema import Item, ResponsesRequest, TextFormat
from pagemill.api.schema import ChatRequest, JsonSchemaFormat, ResponseFormat
from pagemill.errors import InvalidParams

_TEXT = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_REASONING = {"reasoning_text": "text", "summary_text": "text"}
_ROLES = ("user", "assistant", "system", "developer")

Messages = list[dict[str, Any]]


def chat_request(body: ResponsesRequest, history: Messages) -> ChatRequest:
    """The same request in the chat endpoint's terms. Raises InvalidParams."""
    if body.max_output_tokens is not None and body.max_output_tokens < 1:
        raise InvalidParams("max_output_tokens must be at least 1", param="max_output_tokens")
    system: Messages = []
    if body.instructions:
        system.append({"role": "system", "content": body.instructions})
    return ChatRequest(
        model=body.model,
        messages=[*system, *history],
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        stream=body.stream,
        stream_options=body.stream_options,
        tools=None if not body.tools else _tools(body.tools),
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body.text.format if body.text else None),
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
    )


def input_messages(given: str | list[dict[str, Any]]) -> Messages:
    """The input as chat messages. Raises InvalidParams."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not given:
        raise InvalidParams("input must not be empty", param="input")
    messages: Messages = []
    for i, item in enumerate(given):
        _add_item(messages, item, f"input[{i}]")
    return messages


def output_messages(output: list[Item]) -> Messages:
    """The items of an answer as chat messages, for the conversation to go on.

    Calls whose arguments were cut off are left out: no template can show them.
    """
    messages: Messages = []
    for item in output:
        if item.type != "function_call":
            parts = item.content if isinstance(item.content, list) else []
            key = "reasoning_content" if item.type == "reasoning" else "content"
            _assistant(messages)[key] = "".join(part.text for part in parts)
        elif isinstance(item.arguments, str) and _is_object(item.arguments):
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            _assistant(messages).setdefault("tool_calls", []).append(call)
    return messages


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _add_item(messages: Messages, item: dict[str, Any], where: str) -> None:
    match kind_of(item, where):
        case None | "message":
            role = item.get("role")
            if role not in _ROLES:
                known = ", ".join(_ROLES)
                raise InvalidParams(f"{where}.role must be one of {known}", param=f"{where}.role")
            text = joined_text(item.get("content"), f"{where}.content", _TEXT)
            if role == "assistant":
                _assistant(messages, new_after="content")["content"] = text
            else:
                messages.append({"role": role, "content": text})
        case "function_call":
            _assistant(messages).setdefault("tool_calls", []).append(_call(item, where))
        case "function_call_output":
            content = joined_text(item.get("output"), f"{where}.output", _TEXT)
            call_id = string_of(item, "call_id", where)
            messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        case "reasoning":
            parts = item.get("content") or item.get("summary") or []
            text = joined_text(parts, f"{where}.content", _REASONING)
            messages.append({"role": "assistant", "content": "", "reasoning_content": text})
        case kind:
            raise InvalidParams(
                f"{where}.type {str(kind)[:100]!r} is not supported", param=f"{where}.type"
            )


def _assistant(messages: Messages, new_after: str = "") -> dict[str, Any]:
    """The assistant's turn at the end: reasoning, message and calls are one turn's items."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant" or last.get(new_after):
        last = {"role": "assistant", "content": ""}
        messages.append(last)
    return last


def _call(item: dict[str, Any], where: str) -> dict[str, Any]:
    function = {key: string_of(item, key, where) for key in ("name", "arguments")}
    return {"id": string_of(item, "call_id", where), "type": "function", "function": function}


def _tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for i, tool in enumerate(tools):
        if tool.get("type") != "function":
            raise InvalidParams(
                f"tools[{i}].type: only functions are supported", param=f"tools[{i}].type"
            )
    members = ("name", "description", "parameters", "strict")
    return [
        {"type": "function", "function": {key: tool[key] for key in members if key in tool}}
        for tool in tools
    ]


def _tool_choice(body: ResponsesRequest) -> str | dict[str, Any] | None:
    match body.tool_choice:
        case {"type": "function", "name": str() as name}:
            return {"type": "function", "function": {"name": name}}
        case "auto" | "none" if not body.tools:
            return None  # the client's default, which it also sends without tools
    return body.tool_choice


def _format(wanted: TextFormat | None) -> ResponseFormat | None:
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        return ResponseFormat(type=wanted.type)
    if wanted.schema is None:
        raise InvalidParams("text.format.schema is required", param="text.format.schema")
    return ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=wanted.schema))

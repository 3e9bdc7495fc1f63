"""From Anthropic's requests to chat requests."""

from __future__ import annotations

import json
from typing import Any

from pagemill.api.anthropic.schema import (
    AnthropicTool,
    Blocks,
    MessagesRequest,
    PromptFields,
)
from pagemill.api.blocks import joined_text, kind_of, part_text, string_of
from pagemill.api.schema import ChatRequest, JsonSchemaFormat, ResponseFormat
from pagemill.errors import InvalidParams

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_TEXT = {"text": "text"}
_UNSEEN = ("redacted_thinking",)


def chat_request(body: PromptFields) -> ChatRequest:
    """The same request in OpenAI's terms. Raises InvalidParams."""
    messages = _messages(body)
    prefilled = bool(messages) and messages[-1]["role"] == "assistant"
    request = ChatRequest(
        model=body.model,
        messages=messages,
        tools=None if body.tools is None else _tools(body.tools),
        continue_final_message=prefilled or None,
        chat_template_kwargs=_template_kwargs(body),
    )
    _set_choice(request, body)
    wanted = body.output_format
    if body.output_config is not None:
        request.reasoning_effort = body.output_config.effort
        wanted = body.output_config.format or wanted
    if wanted is not None:
        schema = JsonSchemaFormat(schema=wanted.schema)
        request.response_format = ResponseFormat(type="json_schema", json_schema=schema)
    if isinstance(body, MessagesRequest):
        _set_sampling(request, body)
    return request


def _set_sampling(request: ChatRequest, body: MessagesRequest) -> None:
    request.max_tokens = body.max_tokens
    request.temperature = body.temperature
    request.top_p = body.top_p
    request.top_k = body.top_k
    request.stop = body.stop_sequences
    request.stream = body.stream


def _set_choice(request: ChatRequest, body: PromptFields) -> None:
    choice = body.tool_choice
    if choice is None:
        return
    request.tool_choice = _CHOICES.get(choice.type)
    if choice.type == "tool":
        request.tool_choice = {"type": "function", "function": {"name": choice.name}}
    if choice.disable_parallel_tool_use:
        request.parallel_tool_calls = False


def _template_kwargs(body: PromptFields) -> dict[str, Any] | None:
    return None if body.thinking is None else {"enable_thinking": body.thinking.type != "disabled"}


def _tools(tools: list[AnthropicTool]) -> list[dict[str, Any]]:
    for i, tool in enumerate(tools):
        if tool.type not in (None, "custom"):
            raise InvalidParams(
                f"tools[{i}].type: only the client's own tools (custom) are supported",
                param=f"tools[{i}].type",
            )
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.input_schema or {"type": "object"},
            },
        }
        for tool in tools
    ]


def _messages(body: PromptFields) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": joined_text(body.system, "system", _TEXT)})
    for i, message in enumerate(body.messages):
        where = f"messages[{i}]"
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str | list):
            raise InvalidParams(
                f"{where}.content must be a text or a list of blocks", param=f"{where}.content"
            )
        match role:
            case "user":
                messages += _user(content, f"{where}.content")
            case "assistant":
                messages.append(_assistant(content, f"{where}.content"))
            case "system":
                messages.append(
                    {"role": "system", "content": joined_text(content, f"{where}.content", _TEXT)}
                )
            case _:
                raise InvalidParams(
                    f"{where}.role must be user or assistant", param=f"{where}.role"
                )
    return messages


def _user(content: Blocks, where: str) -> list[dict[str, Any]]:
    """A user's turn: its texts as one message, every tool result as one of its own."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    messages: list[dict[str, Any]] = []
    texts: list[str] = []
    for i, block in enumerate(content):
        if kind_of(block, f"{where}[{i}]") == "tool_result":
            messages.append(_tool_result(block, f"{where}[{i}]"))
        else:
            texts.append(part_text(block, f"{where}[{i}]", _TEXT))
    if texts or not messages:
        messages.append({"role": "user", "content": "\n".join(texts)})
    return messages


def _tool_result(block: dict[str, Any], where: str) -> dict[str, Any]:
    call_id = string_of(block, "tool_use_id", where)
    content = joined_text(block.get("content") or "", f"{where}.content", _TEXT)
    if block.get("is_error") and content:
        content = f"Error: {content}"
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _assistant(content: Blocks, where: str) -> dict[str, Any]:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    message: dict[str, Any] = {"role": "assistant"}
    for i, block in enumerate(content):
        at = f"{where}[{i}]"
        kind = kind_of(block, at)
        if kind == "tool_use":
            message.setdefault("tool_calls", []).append(_tool_use(block, at))
        elif kind == "thinking":
            message["reasoning_content"] = string_of(block, "thinking", at)
        elif kind not in _UNSEEN:
            texts.append(part_text(block, at, _TEXT))
    message["content"] = "\n".join(texts)
    return message


def _tool_use(block: dict[str, Any], where: str) -> dict[str, Any]:
    given = block.get("input", {})
    if not isinstance(given, dict):
        raise InvalidParams(f"{where}.input must be an object", param=f"{where}.input")
    function = {"name": string_of(block, "name", where), "arguments": json.dumps(given)}
    return {"id": string_of(block, "id", where), "type": "function", "function": function}

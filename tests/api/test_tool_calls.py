"""Tool calls and reasoning through `/v1/chat/completions`."""

# ruff: noqa: RUF001 (the bars in DeepSeek's tokens are full-width on purpose)

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from api.fakes import FakeClient, FakeRenderer, http_client, make_context, sse_events
from pagemill.api.context import ApiSettings
from pagemill.api.tools.chat_format import ChatFormat
from pagemill.api.tools.choice import ToolChoice, forced_calls
from pagemill.api.tools.formats import (
    REASONING_ALIASES,
    TOOL_ALIASES,
    TOOL_FORMATS,
    detect_format,
    detect_reasoning,
)
from pagemill.errors import ConfigError
from pagemill.grammar.source import check_grammar

USER = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string", "maxLength": 9}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
HERMES = "{{ messages }}<tool_call>{{ tools }}"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


async def post(client: FakeClient, template: str, opens: str = "", **body: Any) -> Any:
    renderer = FakeRenderer(template, opens)
    async with http_client(make_context(client, renderer=renderer)) as http:
        return await http.post("/v1/chat/completions", json={"messages": USER, **body})


def ask(reply: str, template: str = HERMES, opens: str = "", **body: Any) -> dict[str, Any]:
    response = asyncio.run(post(FakeClient(reply), template, opens, **body))
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def deltas(reply: str, template: str = HERMES, **body: Any) -> list[dict[str, Any]]:
    response = asyncio.run(post(FakeClient(reply), template, stream=True, **body))
    events = [json.loads(event) for event in sse_events(response.text)[:-1]]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    return [event["choices"][0]["delta"] for event in events]


def grammar_of(template: str = HERMES, opens: str = "", **body: Any) -> str:
    client = FakeClient("x")
    response = asyncio.run(post(client, template, opens, tools=TOOLS, **body))
    assert response.status_code == 200, response.text
    outputs = client.calls[0][1].structured_outputs
    assert outputs is not None
    assert outputs.grammar is not None
    return str(outputs.grammar)


def matches(grammar: str, text: str) -> bool:
    from llguidance import LLMatcher, LLTokenizer

    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


def test_calls_of_a_whole_answer() -> None:
    choice = ask(
        f"<think>\nhm</think>\n\nI look.\n{CALL}\n{TIME}", "<think><tool_call>", tools=TOOLS
    )
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["reasoning"] == message["reasoning_content"] == "hm"
    assert message["content"] == "I look.\n"
    calls = message["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "weather", "arguments": '{"city": "Rome"}'},
        {"name": "now", "arguments": "{}"},
    ]
    assert len({call["id"] for call in calls}) == 2
    assert all(call["type"] == "function" and "index" not in call for call in calls)


def test_only_calls_leave_the_content_null() -> None:
    assert ask(CALL, tools=TOOLS)["message"]["content"] is None


def test_calls_of_a_stream() -> None:
    pieces = [call for delta in deltas(CALL, tools=TOOLS) for call in delta.get("tool_calls", [])]
    first, *rest = pieces
    assert first["function"] == {"name": "weather", "arguments": "{"}
    assert (first["index"], first["type"]) == (0, "function")
    assert all(set(p) == {"index", "function"} for p in rest)
    assert "".join(p["function"]["arguments"] for p in pieces) == '{"city": "Rome"}'


def test_without_tools_nothing_is_a_call() -> None:
    assert ask(CALL)["message"]["content"] == CALL
    assert ask(CALL, tools=TOOLS, tool_choice="none")["message"]["content"] == CALL


def test_one_call_at_most() -> None:
    message = ask(f"{CALL}\n{TIME}", tools=TOOLS, parallel_tool_calls=False)["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"]


def test_reasoning_that_the_prompt_has_opened() -> None:
    message = ask("hm</think>Yes", "<think>", opens="<think>\n")["message"]
    assert (message["reasoning"], message["content"]) == ("hm", "Yes")
    message = ask("hm</think>Yes", "<think>", "<think>\n", include_reasoning=False)["message"]
    assert "reasoning" not in message


def test_a_budget_of_reasoning_reaches_the_engine_with_the_models_tags() -> None:
    client = FakeClient("hm</think>Yes")
    asyncio.run(post(client, "<think>", thinking_token_budget=5))
    asyncio.run(post(client, "<think>", thinking_token_budget=-1))
    asyncio.run(post(client, "no reasoning", thinking_token_budget=5))  # refused by the validator
    params = [params for _, params, _ in client.calls]
    assert [p.thinking_token_budget for p in params] == [5, None, 5]
    assert [p.thinking_tags for p in params] == [("<think>", "</think>"), None, None]


def test_control_tokens_are_shown_to_the_parser_only_where_it_needs_them() -> None:
    for template, shown in ((HERMES, False), ("[TOOL_CALLS]", True)):
        client = FakeClient("x")
        asyncio.run(post(client, template, tools=TOOLS))
        assert client.calls[0][1].skip_special_tokens is not shown
    client = FakeClient("x")
    asyncio.run(post(client, "[TOOL_CALLS]"))
    assert client.calls[0][1].skip_special_tokens is True


def test_required_calls_in_the_models_own_form() -> None:
    grammar = grammar_of(tool_choice="required")
    assert matches(grammar, CALL)
    assert matches(grammar, f"{CALL}\n{TIME}")
    assert not matches(grammar, "I will not.")
    assert not matches(grammar, CALL.replace("Rome", "Constantinople"))
    assert not matches(grammar, CALL.replace("city", "town"))
    one = grammar_of(tool_choice="required", parallel_tool_calls=False)
    assert matches(one, CALL)
    assert not matches(one, f"{CALL}\n{TIME}")


def test_required_calls_as_a_list_where_no_form_is_known() -> None:
    text = '[{"name": "weather", "arguments": {"city": "Rome"}}, {"name": "now", "arguments": {}}]'
    for template in ("", "<｜tool▁calls▁begin｜>", "<arg_key>", "<|channel|>"):
        grammar = grammar_of(template, tool_choice="required")
        assert matches(grammar, text)
        assert not matches(grammar, "[]")
        choice = ask(text, template, tools=TOOLS, tool_choice="required")
        assert choice["finish_reason"] == "tool_calls"
        assert len(choice["message"]["tool_calls"]) == 2


def test_a_named_function() -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    grammar = grammar_of(tool_choice=choice)
    assert matches(grammar, TIME)
    assert not matches(grammar, CALL)
    assert not matches(grammar, f"{TIME}\n{TIME}")


def test_required_calls_come_after_the_reasoning() -> None:
    grammar = grammar_of("<think><tool_call>", opens="<think>\n", tool_choice="required")
    text = f"Let me see: a < b.\n</think>\n\n{CALL}"
    assert matches(grammar, text)
    assert not matches(grammar, CALL)
    choice = ask(text, "<think><tool_call>", "<think>\n", tools=TOOLS, tool_choice="required")
    assert choice["message"]["reasoning"] == "Let me see: a < b.\n"
    assert len(choice["message"]["tool_calls"]) == 1


@pytest.mark.parametrize("row", TOOL_FORMATS, ids=lambda row: row.name)
def test_every_format_is_detected_by_each_of_its_marks(row: Any) -> None:
    for mark in row.marks:
        assert detect_format(f"{{{{ x }}}} {mark} {{{{ y }}}}") is row


def test_the_more_special_format_is_detected_first() -> None:
    found = {
        "<tool_call>\n<function=example>": "qwen3_coder",
        "<seed:tool_call>\n<function=example>": "seed_oss",
        '<minimax:tool_call>\n<invoke name="f">': "minimax",
        "<tool_call>{name}\n<arg_key>": "glm",
        "<tool_call>\n{json}\n</tool_call>": "hermes",
        "<|start|>assistant<|channel|>analysis<tool_call>": "harmony",
    }
    for template, name in found.items():
        detected = detect_format(template)
        assert detected is not None
        assert detected.name == name
    assert detect_format("{{ messages }}") is None
    assert detect_reasoning("{{ messages }}") is None


def test_parsers_can_be_named() -> None:
    form = ChatFormat.of(HERMES, tools="mistral", reasoning="think")
    assert form.tools is not None
    assert form.reasoning is not None
    assert (form.tools.name, form.reasoning.name) == ("mistral", "think")
    for alias, name in TOOL_ALIASES.items():
        found = ChatFormat.of("", tools=alias).tools
        assert found is not None
        assert found.name == name
    assert all(ChatFormat.of("", reasoning=alias) for alias in REASONING_ALIASES)
    assert ChatFormat.of("<think>" + HERMES, tools="none", reasoning="none") == ChatFormat()
    with pytest.raises(ConfigError, match="known are: deepseek"):
        http_client(make_context(settings=ApiSettings(tool_call_parser="x")))


def test_parameters_may_speak_of_directives_of_grammars() -> None:
    described = {"properties": {"a": {"type": "string", "description": "as 100%, or %json x"}}}
    choice = ToolChoice("required", {"f": described})
    check_grammar(forced_calls(choice, None, None))

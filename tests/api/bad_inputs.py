"""Requests that must be refused, as (body, expected status, expected param) by endpoint."""

from __future__ import annotations

import json
from typing import Any

from pagemill.api.schema import REFUSED

USER = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
HUGE = 10**30

SHARED: list[tuple[str, Any, str | None]] = [
    # wrong types
    ("temperature", "hot", "temperature"),
    ("temperature", True, "temperature"),
    ("temperature", [1], "temperature"),
    ("top_p", {}, "top_p"),
    ("n", "3", "n"),
    ("n", 1.5, "n"),
    ("n", True, "n"),
    ("max_tokens", "many", "max_tokens"),
    ("max_tokens", 2.0, "max_tokens"),
    ("seed", "x", "seed"),
    ("stop", 5, "stop"),
    ("stop", [1], "stop[0]"),
    ("stop", {"a": 1}, "stop"),
    ("stream", "yes", "stream"),
    ("stream", 1, "stream"),
    ("echo", "x", "echo"),
    ("model", 5, "model"),
    ("logit_bias", [1], "logit_bias"),
    ("logit_bias", {"a": 1}, "logit_bias"),
    ("logit_bias", {"5": "x"}, "logit_bias[...]"),
    ("stop_token_ids", "5", "stop_token_ids"),
    ("stop_token_ids", ["5"], "stop_token_ids[0]"),
    ("bad_words", "no", "bad_words"),
    ("ignore_eos", 0, "ignore_eos"),
    ("stream_options", True, "stream_options"),
    ("response_format", "json", "response_format"),
    ("structured_outputs", "json", "structured_outputs"),
    ("guided_choice", "a", "guided_choice"),
    ("priority", "high", "priority"),
    ("cache_salt", 5, "cache_salt"),
    # out of range
    ("temperature", -0.1, "temperature"),
    ("temperature", 2.1, "temperature"),
    ("temperature", 1e300, "temperature"),
    ("top_p", 0, "top_p"),
    ("top_p", 1.01, "top_p"),
    ("top_k", -2, "top_k"),
    ("top_k", HUGE, "top_k"),
    ("min_p", -0.1, "min_p"),
    ("min_p", 1.1, "min_p"),
    ("presence_penalty", 2.5, "presence_penalty"),
    ("frequency_penalty", -2.5, "frequency_penalty"),
    ("repetition_penalty", 0, "repetition_penalty"),
    ("repetition_penalty", 1e9, "repetition_penalty"),
    ("n", 0, "n"),
    ("n", -1, "n"),
    ("n", 129, "n"),
    ("n", HUGE, "n"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", -1, "max_tokens"),
    ("max_tokens", 100_000, "max_tokens"),
    ("max_tokens", 2**31, "max_tokens"),
    ("max_tokens", HUGE, "max_tokens"),
    ("min_tokens", -1, "min_tokens"),
    ("seed", 2**63, "seed"),
    ("seed", -HUGE, "seed"),
    ("stop", ["a"] * 17, "stop"),
    ("stop", "", "stop"),
    ("stop", ["a", ""], "stop"),
    ("stop", "x" * 1025, "stop"),
    ("stop_token_ids", [-1], "stop_token_ids[0]"),
    ("stop_token_ids", [HUGE], "stop_token_ids[0]"),
    ("stop_token_ids", [1] * 129, "stop_token_ids"),
    ("logit_bias", {"-1": 1}, "logit_bias"),
    ("logit_bias", {str(HUGE): 1}, "logit_bias"),
    ("logit_bias", {"1": 101}, "logit_bias"),
    ("logit_bias", {str(i): 1 for i in range(1025)}, "logit_bias"),
    ("allowed_token_ids", [], "allowed_token_ids"),
    ("allowed_token_ids", [2**40], "allowed_token_ids[0]"),
    ("bad_words", [""], "bad_words"),
    ("bad_words", ["a"] * 129, "bad_words"),
    ("prompt_logprobs", 21, "prompt_logprobs"),
    ("prompt_logprobs", -1, "prompt_logprobs"),
    ("timeout", -1, "timeout"),
    ("priority", 1, "priority"),
    ("priority", 2**64, "priority"),
    ("request_id", "", "request_id"),
    ("request_id", "a\r\nx: y", "request_id"),
    ("cache_salt", "", "cache_salt"),
    ("cache_salt", "x" * 129, "cache_salt"),
    ("truncate_prompt_tokens", 0, "truncate_prompt_tokens"),
    ("truncate_prompt_tokens", -2, "truncate_prompt_tokens"),
    ("truncate_prompt_tokens", 10**9, "truncate_prompt_tokens"),
    # structured outputs
    ("response_format", {}, "response_format.type"),
    ("response_format", {"type": "yaml"}, "response_format.type"),
    ("response_format", {"type": "text", "x": 1}, "response_format.x"),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
    ("response_format", {"type": "json_schema", "json_schema": {}}, "response_format.json_schema"),
    (
        "response_format",
        {"type": "text", "json_schema": {"schema": {}}},
        "response_format.json_schema",
    ),
    ("response_format", {"type": "json_object", "triggers": []}, "response_format.triggers"),
    ("structured_outputs", {}, "structured_outputs"),
    ("structured_outputs", {"regex": "a", "choice": ["b"]}, "structured_outputs"),
    ("structured_outputs", {"regexp": "a"}, "structured_outputs.regexp"),
    (
        "structured_outputs",
        {"regex": "a", "whitespace_pattern": " "},
        "structured_outputs.whitespace_pattern",
    ),
    (
        "structured_outputs",
        {"choice": ["a"], "disable_additional_properties": True},
        "structured_outputs.disable_additional_properties",
    ),
    ("guided_whitespace_pattern", " ?", "guided_whitespace_pattern"),
    ("truncation_side", "middle", "truncation_side"),
    ("stream_interval", 0, "stream_interval"),
    ("structured_outputs", {"regex": 5}, "structured_outputs.regex"),
    ("guided_json", {"enum": ["x" * 200_000]}, "guided_json"),
    ("guided_json", {"minimum": HUGE}, "guided_json"),
    ("guided_json", {"enum": [[-HUGE]]}, "guided_json"),
    # unknown and misplaced
    ("temprature", 1, "temprature"),
    ("guided_jsn", {}, "guided_jsn"),
    ("__class__", 1, "__class__"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("stream_options", {"usage": True}, "stream_options.usage"),
    ("model", "gpt-5", "model"),
    ("model", "", "model"),
    ("model", "../../etc/passwd", "model"),
]

COMPLETIONS: list[tuple[Any, str | None]] = [
    ({}, "prompt"),
    ([], None),
    ("text", None),
    (None, None),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [""]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": ["a", [1]]}, "prompt"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [256]}, "prompt"),
    ({"prompt": [HUGE]}, "prompt"),
    ({"prompt": [[1, "a"]]}, "prompt[0][1]"),
    ({"prompt": [[[1]]]}, "prompt[0][0]"),
    ({"prompt": ["a"] * 1025}, "prompt"),
    ({"prompt": ["a"] * 100, "n": 100}, "n"),
    ({"prompt": "x" * 5000}, "max_tokens"),
    ({"prompt": "x", "logprobs": True}, "logprobs"),
    ({"prompt": "x", "logprobs": 21}, "logprobs"),
    ({"prompt": "x", "logprobs": -1}, "logprobs"),
    ({"prompt": "x", "min_tokens": 17}, "min_tokens"),
    ({"prompt": "x", "stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    ({"prompt": "x", "guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
]

CHAT: list[tuple[Any, str | None]] = [
    ({}, "messages"),
    ([], None),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": 5, "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
        "messages[0].content[0].text",
    ),
    ({"messages": USER * 5000}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "max_tokens"),
    ({"messages": USER, "logprobs": 5}, "logprobs"),
    ({"messages": USER, "top_logprobs": 2}, "top_logprobs"),
    ({"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"messages": USER, "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"messages": USER, "max_completion_tokens": 0}, "max_completion_tokens"),
    ({"messages": USER, "tools": []}, "tools"),
    ({"messages": USER, "tools": [{}]}, "tools[0].type"),
    ({"messages": USER, "tools": [{"type": "code"}]}, "tools[0].type"),
    ({"messages": USER, "tools": [{"type": "function"}]}, "tools[0].function"),
    (
        {"messages": USER, "tools": [{"type": "function", "function": {"name": 5}}]},
        "tools[0].function.name",
    ),
    ({"messages": USER, "tool_choice": "auto"}, "tool_choice"),
    ({"messages": USER, "tool_choice": "required"}, "tool_choice"),
    ({"messages": USER, "tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    ({"messages": USER, "tools": TOOLS, "tool_choice": {}}, "tool_choice"),
    ({"messages": USER, "tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
    (
        {
            "messages": USER,
            "tools": TOOLS,
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        "tool_choice",
    ),
    (
        {"messages": USER, "tools": TOOLS, "tool_choice": "required", "guided_regex": "a"},
        "tool_choice",
    ),
    (
        {
            "messages": USER,
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"$ref": "//x"}}}
            ],
            "tool_choice": "required",
        },
        "tools",
    ),
    (
        {
            "messages": USER,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}],
            "tool_choice": "required",
        },
        "tools",
    ),
    ({"messages": USER, "tools": TOOLS * 129}, "tools"),
    ({"messages": USER, "tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"messages": USER, "include_reasoning": "no"}, "include_reasoning"),
    ({"messages": USER, "thinking_token_budget": -2}, "thinking_token_budget"),
    ({"messages": USER, "thinking_token_budget": HUGE}, "thinking_token_budget"),
    ({"messages": USER, "thinking_token_budget": "5"}, "thinking_token_budget"),
    (
        {"messages": USER, "continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
    ),
    (
        {"messages": USER, "chat_template_kwargs": {"messages": []}},
        "chat_template_kwargs.messages",
    ),
    ({"messages": USER, "chat_template_kwargs": {"self": 1}}, "chat_template_kwargs.self"),
    ({"messages": USER, "chat_template_kwargs": {"a": HUGE}}, "chat_template_kwargs"),
    ({"messages": USER, "chat_template_kwargs": {"a": "x" * 20_000}}, "chat_template_kwargs"),
    ({"messages": USER, "chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"messages": USER, "reasoning_effort": "x" * 99}, "reasoning_effort"),
    ({"messages": USER, "prompt": "x"}, "prompt"),
    ({"messages": USER, "suffix": "x"}, "suffix"),
]

OTHER: list[tuple[str, Any, str | None]] = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": USER}, "prompt"),
    ("/tokenize", {"prompt": 5}, "prompt"),
    ("/tokenize", {"prompt": "a", "texts": 1}, "texts"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/tokenize", {"messages": USER, "chat_template": "{{ 1 }}"}, "chat_template"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": "a"}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    ("/detokenize", {"tokens": [999]}, "tokens"),
    ("/detokenize", {"tokens": [HUGE]}, "tokens[0]"),
]

RAW: list[tuple[str, bytes]] = [
    ("empty body", b""),
    ("truncated", b'{"prompt": "a"'),
    ("trailing text", b'{"prompt": "a"} x'),
    ("single quotes", b"{'prompt': 'a'}"),
    ("invalid UTF-8", b'{"prompt": "\xff\xfe"}'),
    ("lone surrogate", b'{"prompt": "\\ud800"}'),
    ("UTF-16", '{"prompt": "a"}'.encode("utf-16")),
    ("NaN", b'{"prompt": "a", "temperature": NaN}'),
    ("Infinity", b'{"prompt": "a", "temperature": Infinity}'),
    ("minus Infinity", b'{"prompt": "a", "top_p": -Infinity}'),
    ("overflowing number", b'{"prompt": "a", "temperature": 1e999}'),
    ("control character", b'{"prompt": "a\x00"}'),
    ("binary", bytes(range(256))),
    ("deep lists", b'{"prompt": "a", "metadata": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    ("deep schema", b'{"prompt": "a", "guided_json": ' + b'{"a":' * 100 + b"1" + b"}" * 101),
]


def refused_fields() -> list[tuple[str, dict[str, Any], str]]:
    """Every refused field with a value that is not neutral."""
    chat_only = {
        *("chat_template", "mm_processor_kwargs", "media_io_kwargs", "return_prompt_text"),
        *("modalities", "audio", "functions", "function_call", "web_search_options"),
    }
    cases = []
    for name in REFUSED:
        body: dict[str, Any] = {"messages": USER} if name in chat_only else {"prompt": "x"}
        path = "/v1/chat/completions" if name in chat_only else "/v1/completions"
        cases.append((path, {**body, name: ["something"]}, name))
    return cases


def all_cases() -> list[tuple[str, str, bytes, int, str | None]]:
    """(name, path, body, status, param) of every case."""
    cases: list[tuple[str, Any, str | None]] = []
    for field, value, param in SHARED:
        cases.append(("/v1/completions", {"prompt": "x", field: value}, param))
        cases.append(("/v1/chat/completions", {"messages": USER, field: value}, param))
    cases += [("/v1/completions", body, param) for body, param in COMPLETIONS]
    cases += [("/v1/chat/completions", body, param) for body, param in CHAT]
    cases += [*OTHER, *refused_fields()]
    named = [
        (
            f"{path} {json.dumps(body)[:60]}",
            path,
            json.dumps(body).encode(),
            _status(param, body),
            param,
        )
        for path, body, param in cases
    ]
    raw = [(name, "/v1/completions", body, 400, None) for name, body in RAW]
    return [*named, *raw]


def _status(param: str | None, body: Any) -> int:
    return 404 if param == "model" and isinstance(body["model"], str) else 400

"""Anthropic's client for Python."""

from __future__ import annotations

import anthropic
import pytest
from common import KEY, MODEL, QUESTION, SCHEMA, URL

CLIENT = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
USER = {"role": "user", "content": QUESTION}
GREEDY = {"temperature": 0}
TOOL = {"name": "weather", "description": "The weather", "input_schema": SCHEMA}


def test_message_and_stream() -> None:
    answer = CLIENT.messages.create(model=MODEL, messages=[USER], max_tokens=12, extra_body=GREEDY)
    assert answer.content[0].type == "text"
    with CLIENT.messages.stream(
        model=MODEL, messages=[USER], max_tokens=12, extra_body=GREEDY
    ) as stream:
        text = "".join(stream.text_stream)
    assert text == answer.content[0].text
    assert answer.usage.output_tokens == 12


def test_forced_tool_and_its_result() -> None:
    answer = CLIENT.messages.create(
        model=MODEL,
        system="You help.",
        messages=[USER],
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "weather"},
        max_tokens=80,
    )
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use"
    assert set(call.input) == {"city", "days"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny"}
    later = [
        USER,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    assert CLIENT.messages.create(model=MODEL, messages=later, max_tokens=8, tools=[TOOL]).content


def test_count_tokens_and_errors() -> None:
    counted = CLIENT.messages.count_tokens(model=MODEL, messages=[USER])
    answer = CLIENT.messages.create(model=MODEL, messages=[USER], max_tokens=1)
    used = answer.usage
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)
    with pytest.raises(anthropic.NotFoundError):
        CLIENT.messages.create(model="none", messages=[USER], max_tokens=1)
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=URL, api_key="wrong", max_retries=0).messages.create(
            model=MODEL, messages=[USER], max_tokens=1
        )

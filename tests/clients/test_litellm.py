"""litellm, as an OpenAI-compatible and as a vLLM server, and in Anthropic's terms."""

from __future__ import annotations

import asyncio
import json

import litellm
import pytest
from common import BASE, EMBEDDER, KEY, MODEL, QUESTION, SCHEMA, URL, VECTORS

USER = [{"role": "user", "content": QUESTION}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
PROVIDERS = ("openai", "hosted_vllm")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_chat_and_stream(provider: str) -> None:
    options = {
        "model": f"{provider}/{MODEL}",
        "api_base": BASE,
        "api_key": KEY,
        "messages": USER,
        "temperature": 0,
        "max_tokens": 12,
    }
    answer = litellm.completion(**options)
    pieces = [c.choices[0].delta.content or "" for c in litellm.completion(**options, stream=True)]
    assert "".join(pieces) == answer.choices[0].message.content
    assert answer.usage.completion_tokens == 12


@pytest.mark.parametrize("provider", PROVIDERS)
def test_tools_and_schema(provider: str) -> None:
    options = {"model": f"{provider}/{MODEL}", "api_base": BASE, "api_key": KEY, "messages": USER}
    called = litellm.completion(**options, tools=[TOOL], tool_choice="required", max_tokens=80)
    (call, *_) = called.choices[0].message.tool_calls
    assert {"city", "days"} <= set(json.loads(call.function.arguments))  # it drops `strict`
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    formed = litellm.completion(**options, response_format=shape, max_tokens=80)
    assert set(json.loads(formed.choices[0].message.content)) == {"city", "days"}


def test_async_and_text_completion() -> None:
    answer = asyncio.run(
        litellm.acompletion(
            model=f"openai/{MODEL}", api_base=BASE, api_key=KEY, messages=USER, max_tokens=4
        )
    )
    assert answer.choices[0].message.content
    text = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        api_base=BASE,
        api_key=KEY,
        prompt="One, two,",
        max_tokens=4,
    )
    assert text.choices[0].text


def test_messages_api() -> None:
    answer = litellm.completion(
        model=f"anthropic/{MODEL}", api_base=URL, api_key=KEY, messages=USER, max_tokens=4
    )
    assert answer.choices[0].message.content


@pytest.mark.parametrize("provider", PROVIDERS)
def test_embeddings(provider: str) -> None:
    made = litellm.embedding(
        model=f"{provider}/{EMBEDDER}", api_base=VECTORS, api_key=KEY, input=["a", "b"]
    )
    assert [len(row["embedding"]) for row in made.data] == [384, 384]


def test_errors_are_its_own() -> None:
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(
            model=f"openai/{MODEL}",
            api_base=BASE,
            api_key=KEY,
            messages=USER,
            temperature=9,
            num_retries=0,
        )
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(
            model=f"openai/{MODEL}", api_base=BASE, api_key="wrong", messages=USER, num_retries=0
        )

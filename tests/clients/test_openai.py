"""OpenAI's client for Python."""

from __future__ import annotations

import json

import openai
import pytest
from common import BASE, EMBEDDER, KEY, MODEL, QUESTION, SCHEMA, VECTORS
from pydantic import BaseModel, Field

CLIENT = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)
USER = {"role": "user", "content": QUESTION}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


def test_chat_and_stream() -> None:
    answer = CLIENT.chat.completions.create(
        model=MODEL, messages=[USER], max_tokens=12, temperature=0
    )
    with CLIENT.chat.completions.create(
        model=MODEL, messages=[USER], max_tokens=12, temperature=0, stream=True
    ) as stream:
        pieces = [c.choices[0].delta.content or "" for c in stream if c.choices]
    assert "".join(pieces) == answer.choices[0].message.content
    assert len(pieces) > 5


def test_forced_tool_call_and_its_result() -> None:
    messages = [{"role": "user", "content": "What is the weather in Rome?"}]
    answer = CLIENT.chat.completions.create(
        model=MODEL, messages=messages, tools=[TOOL], tool_choice="required", max_tokens=80
    )
    message = answer.choices[0].message
    assert message.tool_calls
    assert set(json.loads(message.tool_calls[0].function.arguments)) == {"city", "days"}
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Sunny"}
    messages += [message.model_dump(exclude_none=True), result]
    final = CLIENT.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    assert final.choices[0].message.content


def test_parsed_output() -> None:
    class Animal(BaseModel):
        name: str = Field(max_length=20)
        legs: int = Field(ge=0, le=100)

    answer = CLIENT.chat.completions.parse(
        model=MODEL, messages=[USER], response_format=Animal, max_tokens=400, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Animal)


def test_completions_and_responses() -> None:
    text = CLIENT.completions.create(model=MODEL, prompt="One, two,", max_tokens=4).choices[0].text
    assert text
    made = CLIENT.responses.create(model=MODEL, input="Say hi.", max_output_tokens=16)
    assert made.output_text
    assert CLIENT.responses.retrieve(made.id).id == made.id


def test_embeddings() -> None:
    client = openai.OpenAI(base_url=VECTORS, api_key=KEY, max_retries=0)
    made = client.embeddings.create(model=EMBEDDER, input=["a cat", "a kitten", "the stock market"])
    cat, kitten, market = (row.embedding for row in made.data)
    assert len(cat) == 384
    assert dot(cat, kitten) > dot(cat, market) + 0.2


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_errors() -> None:
    with pytest.raises(openai.NotFoundError):
        CLIENT.chat.completions.create(model="none", messages=[USER])
    with pytest.raises(openai.BadRequestError, match="temperature"):
        CLIENT.chat.completions.create(model=MODEL, messages=[USER], temperature=9)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=BASE, api_key="wrong", max_retries=0).models.list()

"""pydantic-ai: agents with text, typed output, tools and streams."""

from __future__ import annotations

import asyncio

import pytest
from common import BASE, KEY, MODEL, QUESTION
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

PROVIDER = OpenAIProvider(base_url=BASE, api_key=KEY)
CHAT = OpenAIChatModel(MODEL, provider=PROVIDER)
SETTINGS = {"max_tokens": 300, "temperature": 0.0}


class Animal(BaseModel):
    """An animal."""

    name: str = Field(max_length=20)
    legs: int = Field(ge=0, le=100)


def test_text() -> None:
    result = Agent(CHAT, model_settings=SETTINGS).run_sync(QUESTION)
    assert result.output
    usage = result.usage() if callable(result.usage) else result.usage
    assert usage.output_tokens > 0


@pytest.mark.parametrize("output", [Animal, NativeOutput(Animal)], ids=["tool", "native"])
def test_typed_output(output: object) -> None:
    result = Agent(CHAT, output_type=output, model_settings=SETTINGS).run_sync(QUESTION)
    assert isinstance(result.output, Animal)


def test_stream() -> None:
    async def run() -> str:
        async with Agent(CHAT, model_settings=SETTINGS).run_stream(QUESTION) as result:
            pieces = [piece async for piece in result.stream_text(delta=True)]
        assert len(pieces) > 1
        return "".join(pieces)

    assert asyncio.run(run())


def test_a_tool_is_offered() -> None:
    agent = Agent(CHAT, model_settings=SETTINGS)

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"sunny in {city}"

    assert agent.run_sync(QUESTION).output


def test_responses_api() -> None:
    model = OpenAIResponsesModel(MODEL, provider=PROVIDER)
    assert Agent(model, model_settings={"max_tokens": 20}).run_sync("Say hi.").output

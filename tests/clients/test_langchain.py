"""langchain-openai."""

from __future__ import annotations

from typing import Literal

from common import BASE, EMBEDDER, KEY, MODEL, QUESTION, VECTORS
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

CHAT = ChatOpenAI(model=MODEL, base_url=BASE, api_key=KEY, temperature=0, max_tokens=300)


class Animal(BaseModel):
    """An animal."""

    name: str = Field(max_length=20)
    legs: int = Field(ge=0, le=100)


@tool
def weather(city: Literal["Rome", "Oslo"], days: Literal[1, 2]) -> str:
    """The weather of a city."""
    return f"{city}: sunny for {days} days"


def test_invoke_and_stream() -> None:
    answer = CHAT.invoke(QUESTION)
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(str(chunk.content) for chunk in CHAT.stream(QUESTION)) == answer.content


def test_bound_tools() -> None:
    forced = CHAT.bind_tools([weather], tool_choice="weather")
    (call,) = forced.invoke("What is the weather in Rome?").tool_calls
    assert call["name"] == "weather"
    assert set(call["args"]) == {"city", "days"}


def test_structured_output_in_every_way() -> None:
    for method in ("json_schema", "function_calling"):
        found = CHAT.with_structured_output(Animal, method=method).invoke(QUESTION)
        assert isinstance(found, Animal), method
    found = CHAT.with_structured_output(Animal.model_json_schema(), method="json_schema")
    assert set(found.invoke(QUESTION)) == {"name", "legs"}


def test_batch_and_responses_api() -> None:
    assert len(CHAT.batch([QUESTION, "Say hi."])) == 2
    responses = ChatOpenAI(
        model=MODEL, base_url=BASE, api_key=KEY, max_tokens=16, use_responses_api=True
    )
    assert responses.invoke("Say hi.").text


def test_embeddings() -> None:
    made = OpenAIEmbeddings(
        model=EMBEDDER, base_url=VECTORS, api_key=KEY, check_embedding_ctx_length=False
    )
    assert [len(row) for row in made.embed_documents(["a", "b"])] == [384, 384]

"""instructor, in the modes that open servers are used with."""

from __future__ import annotations

import instructor
import openai
import pytest
from common import BASE, KEY, MODEL, QUESTION
from pydantic import BaseModel, Field


class Animal(BaseModel):
    """An animal."""

    name: str = Field(max_length=20)
    legs: int = Field(ge=0, le=100)


@pytest.mark.parametrize(
    "mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT]
)
def test_a_model_is_filled_in(mode: instructor.Mode) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=BASE, api_key=KEY), mode=mode)
    found = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        response_model=Animal,
        max_tokens=400,
        temperature=0,
        max_retries=0,
    )
    assert isinstance(found, Animal)


def test_partial_streaming() -> None:
    client = instructor.from_openai(
        openai.OpenAI(base_url=BASE, api_key=KEY), mode=instructor.Mode.TOOLS
    )
    parts = list(
        client.chat.completions.create_partial(
            model=MODEL,
            messages=[{"role": "user", "content": QUESTION}],
            response_model=Animal,
            max_tokens=400,
            temperature=0,
        )
    )
    assert len(parts) > 1
    assert parts[-1].name

"""The official `openai` client against a real server and a real model."""

from __future__ import annotations

import math

import openai
import pytest

from e2e.serving import RunningServer

QUESTION = [{"role": "user", "content": "Name three animals that live in the sea."}]
MODEL = "SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return server.client(timeout=60)


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_models(client: openai.OpenAI, model: str) -> None:
    assert MODEL in model
    assert client.models.retrieve(model).id == model


def test_chat_answers_sensibly(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=40
    )
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.refusal is None
    assert choice.finish_reason == "stop"
    assert "whale" in choice.message.content.lower() or "dolphin" in choice.message.content.lower()
    assert answer.usage.prompt_tokens == 39  # as Hugging Face's chat template has it
    assert answer.usage.total_tokens == 39 + answer.usage.completion_tokens


def test_stream_says_the_same(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert [r for r in reasons if r] == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1


def test_completion_with_echo_and_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=1, echo=True, logprobs=2, temperature=0
    )
    scored = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith("Once upon a time")
    assert len(scored.tokens) == len(scored.token_logprobs) == 5
    assert scored.token_logprobs[0] is None
    assert all(p <= 0 for p in scored.token_logprobs[1:])
    assert "".join(scored.tokens) == answer.choices[0].text


def test_chat_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob  # greedy takes the likeliest
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1 + 1e-4


def test_n_choices_differ_and_seeds_repeat(client: openai.OpenAI, model: str) -> None:
    def texts(seed: int) -> list[str]:
        answer = client.chat.completions.create(
            model=model, messages=QUESTION, n=3, max_tokens=16, temperature=1, seed=seed
        )
        assert [c.index for c in answer.choices] == [0, 1, 2]
        return [c.message.content for c in answer.choices]

    assert len(set(texts(7))) == 3
    assert texts(7) == texts(7)
    assert texts(7) != texts(8)


def test_stop_string_ends_the_text(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "prompt": "1 2 3 4 5 6 7 8", "temperature": 0, "max_tokens": 30}
    answer = client.completions.create(**asked, stop=["12"])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == " 9 10 11 "
    streamed = client.completions.create(**asked, stop=["12"], stream=True)
    assert "".join(c.choices[0].text for c in streamed) == " 9 10 11 "


def test_length_ends_the_text(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="One", max_tokens=3, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_cached_prompt_is_counted(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "prompt": list(range(100, 164)), "max_tokens": 2, "temperature": 0}
    first, second = (client.completions.create(**asked) for _ in range(2))
    assert second.choices[0].text == first.choices[0].text
    assert second.usage.prompt_tokens_details.cached_tokens >= 48


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"temperature": 9}, openai.BadRequestError, "temperature"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"prompt": [10**7]}, openai.BadRequestError, "prompt"),
        ({"prompt": "word " * 9000}, openai.BadRequestError, None),
        ({"prompt": []}, openai.BadRequestError, "prompt"),
        ({"prompt": "x" * 9 * 2**20}, openai.APIStatusError, None),
    ],
    ids=["model", "temperature", "max_tokens", "token id", "too long", "empty", "too large"],
)
def test_errors_have_their_class(
    client: openai.OpenAI,
    model: str,
    change: dict[str, object],
    error: type[openai.APIStatusError],
    param: str | None,
) -> None:
    asked = {"model": model, "prompt": "Hi", "max_tokens": 2} | change
    with pytest.raises(error) as caught:
        client.completions.create(**asked)
    assert caught.value.body["message"]
    if param is not None:
        assert caught.value.param == param
    assert client.completions.create(model=model, prompt="Hi", max_tokens=1).choices

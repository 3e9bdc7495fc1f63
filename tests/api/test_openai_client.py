"""The official `openai` client against a real server on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from api.fakes import MODEL, REPLY, FakeClient, make_context, overloaded
from api.live import serve, wait_until
from pagemill.api.context import ApiSettings

KEY = "sk-test"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def engine() -> FakeClient:
    return FakeClient()


@pytest.fixture(scope="module")
def url(engine: FakeClient) -> Iterator[str]:
    with serve(make_context(engine, ApiSettings(keys=(KEY,)))) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "alias"]
    assert client.models.retrieve(MODEL).object == "model"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)  # type: ignore[arg-type]
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role) == (REPLY, "assistant")
    assert (choice.finish_reason, choice.message.refusal) == ("stop", None)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(REPLY)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer._request_id is not None
    assert answer.id == f"chatcmpl-{answer._request_id}"


def test_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,  # type: ignore[arg-type]
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == REPLY
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(REPLY)


def test_chat_stream_helper(client: openai.OpenAI) -> None:
    """The accumulating helper checks the chunks' shape more strictly than the plain stream."""
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, logprobs=True) as stream:  # type: ignore[arg-type]
        final = [event for event in stream if event.type == "chunk"] and stream
        completion = final.get_final_completion()
    assert completion.choices[0].message.content == REPLY
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.content is not None
    assert len(completion.choices[0].logprobs.content) == len(REPLY)


def test_chat_options(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,  # type: ignore[arg-type]
        n=3,
        stop=["world"],
        logprobs=True,
        top_logprobs=2,
        temperature=0.5,
        seed=1,
        user="me",
        extra_body={"top_k": 5, "min_p": 0.1},
    )
    assert [choice.message.content for choice in answer.choices] == ["Hello, "] * 3
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.content[0].token == "H"
    assert [top.token for top in logprobs.content[0].top_logprobs] == ["H", "I"]


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["a", "b"], max_tokens=3, n=3, echo=True, logprobs=2
    )
    assert [choice.text for choice in answer.choices] == ["aHel"] * 3 + ["bHel"] * 3
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "H", "e", "l"]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 18)


def test_completions_stream(client: openai.OpenAI) -> None:
    stream = client.completions.create(model=MODEL, prompt=[72, 73], max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello"


def test_error_classes(client: openai.OpenAI, url: str, engine: FakeClient) -> None:
    create = client.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        create(model=MODEL, prompt="x", temperature=9)
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "temperature",
        "400",
        "BadRequestError",
    )
    with pytest.raises(openai.NotFoundError, match="fake-model"):
        create(model="gpt-5", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
    engine.raises = overloaded()
    try:
        with pytest.raises(openai.InternalServerError) as busy:
            create(model=MODEL, prompt="x")
    finally:
        engine.raises = None
    assert busy.value.status_code == 503


def test_error_inside_a_stream(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.fail_after = 2
    try:
        with pytest.raises(openai.APIError, match="could not finish"):
            list(client.completions.create(model=MODEL, prompt="x", stream=True))
    finally:
        engine.fail_after = None


def test_closing_a_stream_cancels_the_request(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.delay = 0.05
    try:
        stream = client.completions.create(model=MODEL, prompt="x", max_tokens=30, stream=True)
        next(iter(stream))
        before = len(engine.cancelled)
        stream.close()
        assert wait_until(lambda: len(engine.cancelled) > before)
    finally:
        engine.delay = 0.0

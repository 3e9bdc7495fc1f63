"""`/v1/completions`: prompts, echo, logprobs, streams."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from api.fakes import REPLY, FakeClient, http_client, make_context, sse_events
from pagemill.api.context import ServerContext


async def post(context: ServerContext, **body: Any) -> dict[str, Any]:
    async with http_client(context) as http:
        response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def stream(context: ServerContext, **body: Any) -> list[dict[str, Any]]:
    async with http_client(context) as http:
        response = await http.post("/v1/completions", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    *events, done = sse_events(response.text)
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def complete(**body: Any) -> dict[str, Any]:
    return asyncio.run(post(make_context(), **body))


def chunks(**body: Any) -> list[dict[str, Any]]:
    return asyncio.run(stream(make_context(), **body))


def text_of(events: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["text"] for choice in choices if choice["index"] == index)


def test_answer_has_every_required_key() -> None:
    answer = complete(prompt="hi", max_tokens=5)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "fake-model"
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "Hello",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 5,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_max_tokens_is_16_when_not_given() -> None:
    assert complete(prompt="hi")["choices"][0]["text"] == REPLY[:16]
    assert complete(prompt="hi", max_tokens=None)["choices"][0]["text"] == REPLY[:16]


@pytest.mark.parametrize(
    ("prompt", "num_prompts", "num_tokens"),
    [
        ("hey", 1, 3),
        ([1, 2, 3, 4], 1, 4),
        (["ab", "cde"], 2, 5),
        ([[1, 2], [3]], 2, 3),
        (["only one"], 1, 8),
    ],
)
def test_forms_of_prompts(prompt: Any, num_prompts: int, num_tokens: int) -> None:
    answer = complete(prompt=prompt, max_tokens=3)
    assert [choice["index"] for choice in answer["choices"]] == list(range(num_prompts))
    assert {choice["text"] for choice in answer["choices"]} == {"Hel"}
    assert answer["usage"]["prompt_tokens"] == num_tokens


def test_choices_of_several_prompts_are_in_order() -> None:
    answer = complete(prompt=["a", "b", "c"], n=2, max_tokens=2, echo=True)
    assert [c["text"] for c in answer["choices"]] == ["aHe", "aHe", "bHe", "bHe", "cHe", "cHe"]
    assert answer["usage"]["completion_tokens"] == 12


def test_stop_string_and_its_reason() -> None:
    choice = complete(prompt="x", stop="world", max_tokens=100)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hello, ", "stop")
    assert choice["stop_reason"] == "world"


def test_logprobs_in_the_legacy_format() -> None:
    logprobs = complete(prompt="x", max_tokens=3, logprobs=2)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["H", "e", "l"]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert logprobs["token_logprobs"] == [-0.5, -0.5, -0.5]
    assert logprobs["top_logprobs"][0] == {"H": -0.5, "I": -1.0}


def test_logprobs_zero_still_names_the_chosen_token() -> None:
    logprobs = complete(prompt="x", max_tokens=1, logprobs=0)["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{"H": -0.5}]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scoring_a_prompt_of_token_ids(max_tokens: int) -> None:
    prompt = [10, 20, 30]
    answer = complete(prompt=prompt, echo=True, logprobs=1, max_tokens=max_tokens)
    logprobs = answer["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == 3 + max_tokens
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:3] == [-0.5, -0.5]
    assert logprobs["top_logprobs"][2] == {chr(30): -0.5}
    assert logprobs["text_offset"] == list(range(3 + max_tokens))
    assert answer["choices"][0]["text"] == "\n\x14\x1e" + "H" * max_tokens
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == max_tokens


def test_tokens_as_token_ids() -> None:
    answer = complete(
        prompt=[7, 8], echo=True, logprobs=1, max_tokens=1, return_tokens_as_token_ids=True
    )
    assert answer["choices"][0]["logprobs"]["tokens"] == [
        "token_id:7",
        "token_id:8",
        f"token_id:{ord('H')}",
    ]


def test_token_ids_and_prompt_logprobs_are_returned_on_request() -> None:
    answer = complete(prompt=[7, 8], max_tokens=2, return_token_ids=True, prompt_logprobs=1)
    choice = answer["choices"][0]
    assert choice["token_ids"] == [ord("H"), ord("e")]
    assert choice["prompt_token_ids"] == [7, 8]
    assert choice["prompt_logprobs"] == [
        None,
        {"8": {"logprob": -0.5, "rank": 1, "decoded_token": "\x08"}},
    ]


def test_truncation_keeps_the_end_of_the_prompt_or_its_beginning() -> None:
    client = FakeClient()
    asyncio.run(post(make_context(client), prompt=[1, 2, 3, 4], truncate_prompt_tokens=2))
    side = {"truncation_side": "right"}
    asyncio.run(post(make_context(client), prompt=[1, 2, 3, 4], truncate_prompt_tokens=3, **side))
    assert [call[0].token_ids for call in client.calls] == [[3, 4], [1, 2, 3]]


def test_stream_adds_up_to_the_answer() -> None:
    events = chunks(prompt="hi", max_tokens=100)
    assert text_of(events) == REPLY
    assert len({event["id"] for event in events}) == 1
    assert [event["choices"][0]["finish_reason"] for event in events[-2:]] == [None, "stop"]
    assert all("usage" not in event for event in events)


def test_stream_with_usage_ends_with_a_chunk_without_choices() -> None:
    *events, last = chunks(prompt="hi", max_tokens=4, stream_options={"include_usage": True})
    assert all(event["usage"] is None for event in events)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4


def test_continuous_usage_counts_up() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = chunks(prompt="hi", max_tokens=3, stream_options=options)
    assert [e["usage"]["completion_tokens"] for e in events] == [1, 2, 3, 3]


def test_stream_of_several_prompts_and_choices() -> None:
    events = chunks(prompt=["a", "b"], n=2, max_tokens=6, echo=True)
    for index, prompt in enumerate("aabb"):
        assert text_of(events, index) == prompt + REPLY[:6]


def test_streamed_logprobs_continue_their_offsets() -> None:
    events = chunks(prompt="ab", max_tokens=2, logprobs=1, echo=True)
    offsets = [o for event in events for o in event["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == [0, 1, 2, 3]


def test_request_matching_a_benchmark_client() -> None:
    """The body that `vllm bench serve --backend openai` sends."""
    events = chunks(
        model="fake-model",
        prompt="hi",
        temperature=0.0,
        repetition_penalty=1.0,
        max_tokens=8,
        logprobs=None,
        stream_options={"include_usage": True},
        ignore_eos=True,
    )
    assert events[-1]["usage"]["completion_tokens"] == 8


def test_params_reach_the_engine() -> None:
    client = FakeClient()
    fields: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.2,
        "seed": 3,
        "stop": ["zz"],
        "stop_token_ids": [5],
        "ignore_eos": True,
        "min_tokens": 1,
        "allowed_token_ids": [1, 2],
        "bad_words": ["no"],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "timeout": 9.0,
    }
    asyncio.run(
        post(make_context(client), prompt="x", logit_bias={"5": -3.5}, cache_salt="s", **fields)
    )
    _, params, options = client.calls[0]
    assert {name: getattr(params, name) for name in fields} == fields
    assert params.logit_bias == {5: -3.5}
    assert options["cache_salt"] == "s"


def test_defaults_come_from_the_user_then_the_server() -> None:
    client = FakeClient()
    context = make_context(client, default_params={"temperature": 0.6, "top_k": 20})
    asyncio.run(post(context, prompt="x", top_k=5))
    _, params, _ = client.calls[0]
    assert (params.temperature, params.top_k, params.top_p) == (0.6, 5, 1.0)


def test_model_may_be_missing_or_an_alias() -> None:
    assert complete(prompt="x")["model"] == "fake-model"
    assert complete(prompt="x", model="alias")["model"] == "alias"

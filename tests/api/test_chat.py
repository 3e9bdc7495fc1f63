"""`/v1/chat/completions`: messages, template options, structured outputs, streams."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from api.fakes import REPLY, FakeClient, FakeRenderer, http_client, make_context, sse_events
from pagemill.api.context import ServerContext
from pagemill.params import StructuredOutputs

USER = [{"role": "user", "content": "hi"}]


async def post(context: ServerContext, **body: Any) -> dict[str, Any]:
    async with http_client(context) as http:
        response = await http.post("/v1/chat/completions", json={"messages": USER, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def stream(context: ServerContext, **body: Any) -> list[dict[str, Any]]:
    body = {"messages": USER, **body, "stream": True}
    async with http_client(context) as http:
        response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    *events, done = sse_events(response.text)
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def chat(**body: Any) -> dict[str, Any]:
    return asyncio.run(post(make_context(), **body))


def chunks(**body: Any) -> list[dict[str, Any]]:
    return asyncio.run(stream(make_context(), **body))


def params_of(**body: Any) -> Any:
    client = FakeClient()
    asyncio.run(post(make_context(client), **body))
    return client.calls[0][1]


def template_options(**body: Any) -> dict[str, Any]:
    renderer = FakeRenderer()
    asyncio.run(post(make_context(renderer=renderer), **body))
    return renderer.last_chat


def test_answer_has_every_required_key() -> None:
    answer = chat(max_tokens=5)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert answer["usage"]["completion_tokens"] == 5


def test_without_max_tokens_the_engine_decides() -> None:
    assert params_of().max_tokens is None
    assert params_of(max_tokens=9).max_tokens == 9
    assert params_of(max_tokens=9, max_completion_tokens=4).max_tokens == 4


def test_logprobs_with_bytes_and_top_logprobs() -> None:
    logprobs = chat(max_tokens=2, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]
    first = logprobs["content"][0]
    assert (first["token"], first["logprob"], first["bytes"]) == ("H", -0.5, [ord("H")])
    assert [top["token"] for top in first["top_logprobs"]] == ["H", "I"]
    assert logprobs["refusal"] is None


def test_logprobs_without_top_logprobs() -> None:
    logprobs = chat(max_tokens=1, logprobs=True)["choices"][0]["logprobs"]
    assert logprobs["content"][0]["top_logprobs"] == []


def test_stream_begins_with_the_role_and_ends_with_the_reason() -> None:
    events = chunks(max_tokens=3)
    assert events[0]["object"] == "chat.completion.chunk"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [e["choices"][0]["delta"]["content"] for e in events[1:]] == ["H", "e", "l"]
    assert [e["choices"][0]["finish_reason"] for e in events] == [None, None, None, "length"]


def test_stream_of_three_choices() -> None:
    events = chunks(n=3, max_tokens=100)
    for index in range(3):
        own = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in own) == REPLY
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] == "stop"


def test_stream_with_usage() -> None:
    *events, last = chunks(max_tokens=2, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 2
    assert all(event["usage"] is None for event in events)


def test_echo_continues_the_assistants_message() -> None:
    messages = [*USER, {"role": "assistant", "content": "Well, "}]
    body: dict[str, Any] = {"messages": messages, "echo": True, "continue_final_message": True}
    assert chat(**body, max_tokens=5)["choices"][0]["message"]["content"] == "Well, Hello"
    assert chunks(**body, max_tokens=5)[0]["choices"][0]["delta"]["content"] == "Well, "


def test_template_sees_its_options() -> None:
    options = template_options(
        chat_template_kwargs={"enable_thinking": False},
        reasoning_effort="low",
        documents=[{"text": "d"}],
        add_special_tokens=True,
    )
    assert options["template_kwargs"] == {
        "enable_thinking": False,
        "reasoning_effort": "low",
        "documents": [{"text": "d"}],
    }
    assert options["add_generation_prompt"] is True
    assert options["add_special_tokens"] is True


def test_continuing_needs_no_generation_prompt() -> None:
    options = template_options(continue_final_message=True)
    assert options["add_generation_prompt"] is False
    assert options["continue_final_message"] is True


def test_tools_go_to_the_template_unless_the_choice_is_none() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert template_options(tools=tools)["tools"] == tools
    assert template_options(tools=tools, tool_choice="auto")["tools"] == tools
    assert template_options(tools=tools, tool_choice="none")["tools"] is None


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, StructuredOutputs(json_object=True)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            StructuredOutputs(json=SCHEMA),
        ),
        ({"structured_outputs": {"regex": "a+"}}, StructuredOutputs(regex="a+")),
        ({"guided_json": SCHEMA}, StructuredOutputs(json=SCHEMA)),
        ({"guided_regex": "b"}, StructuredOutputs(regex="b")),
        (
            {"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"},
            StructuredOutputs(json=SCHEMA, whitespace_pattern=" ?"),
        ),
        (
            {"structured_outputs": {"json_object": True, "disable_any_whitespace": True}},
            StructuredOutputs(json_object=True, disable_any_whitespace=True),
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}},
            StructuredOutputs(json=SCHEMA, disable_additional_properties=True),
        ),
        ({"guided_choice": ["x", "y"]}, StructuredOutputs(choice=["x", "y"])),
        ({"guided_grammar": 'start: "a"'}, StructuredOutputs(grammar='start: "a"')),
        (
            {"response_format": {"type": "structural_tag", "triggers": ["<"], "structures": []}},
            StructuredOutputs(
                structural_tag={"type": "structural_tag", "triggers": ["<"], "structures": []}
            ),
        ),
    ],
)
def test_structured_outputs(field: dict[str, Any], expected: StructuredOutputs | None) -> None:
    assert params_of(**field).structured_outputs == expected


def test_fields_without_effect_are_named_in_a_header() -> None:
    async def ignored() -> str:
        async with http_client(make_context()) as http:
            body = {
                "messages": [{"role": "user", "content": "hi", "cache_control": {"type": "x"}}],
                "user": "me",
                "store": True,
                "seed": None,
            }
            response = await http.post("/v1/chat/completions", json=body)
        return response.headers["x-ignored-parameters"]

    assert asyncio.run(ignored()) == "user, store, messages[].cache_control"


@pytest.mark.parametrize("stream", [False, True])
def test_a_clients_own_names_cannot_forge_headers(stream: bool) -> None:
    async def run() -> str:
        async with http_client(make_context()) as http:
            members = {f"m{i}": 1 for i in range(100)} | {"a\r\nset-cookie: x": 1, "é☃": 1}
            messages = [{"role": "user", "content": "hi", **members}]
            body = {"messages": messages, "stream": stream}
            response = await http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        assert "set-cookie" not in response.headers
        return response.headers["x-ignored-parameters"]

    header = asyncio.run(run())
    assert "messages[].a??set-cookie??x" in header
    assert len(header) < 1000

"""`/v1/messages` with the official `anthropic` client, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from api.fakes import (
    MODEL,
    REPLY,
    FakeClient,
    FakeRenderer,
    http_client,
    make_context,
    overloaded,
)
from api.live import serve, wait_until
from pagemill.api.context import ApiSettings, ServerContext

KEY = "sk-test"
USER: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
CALL = '<think>\nhm</think>I look.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


@pytest.fixture(scope="module")
def engine() -> FakeClient:
    return FakeClient()


@pytest.fixture(scope="module")
def url(engine: FakeClient) -> Iterator[str]:
    renderer = FakeRenderer("<think><tool_call>")
    with serve(make_context(engine, ApiSettings(keys=(KEY,)), renderer=renderer)) as url:
        yield url


@pytest.fixture
def client(url: str, engine: FakeClient) -> Iterator[anthropic.Anthropic]:
    engine.reply, engine.raises, engine.fail_after, engine.delay = REPLY, None, None, 0.0
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def test_message(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model=MODEL, max_tokens=100, messages=USER)
    (block,) = answer.content
    assert block.type == "text"
    assert block.text == REPLY
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", MODEL)
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.usage.output_tokens == len(REPLY)
    assert answer.usage.cache_read_input_tokens == 2
    assert answer.usage.input_tokens == len("<user>hi") - 2


@pytest.mark.parametrize(
    ("options", "reason", "sequence"),
    [
        ({"max_tokens": 5}, "max_tokens", None),
        ({"max_tokens": 99, "stop_sequences": ["world"]}, "stop_sequence", "world"),
    ],
)
def test_stop_reasons(
    client: anthropic.Anthropic, options: Any, reason: str, sequence: str | None
) -> None:
    answer = client.messages.create(model=MODEL, messages=USER, **options)
    assert (answer.stop_reason, answer.stop_sequence) == (reason, sequence)


def test_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model=MODEL, max_tokens=100, messages=USER) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == REPLY
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len(REPLY)
    assert final.usage.input_tokens > 0


def test_events_of_a_stream(client: anthropic.Anthropic) -> None:
    stream = client.messages.create(model=MODEL, max_tokens=2, messages=USER, stream=True)
    assert [event.type for event in stream] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def check_tool_use(message: Any) -> None:
    thinking, text, call = message.content
    assert (thinking.type, thinking.thinking) == ("thinking", "hm")
    assert (text.type, text.text) == ("text", "I look.")
    assert (call.type, call.name, call.input) == ("tool_use", "f", {"a": 1})
    assert call.id
    assert message.stop_reason == "tool_use"


def test_thinking_and_tool_use(client: anthropic.Anthropic, engine: FakeClient) -> None:
    engine.reply = CALL
    options: Any = {"model": MODEL, "max_tokens": 200, "messages": USER, "tools": TOOLS}
    check_tool_use(client.messages.create(**options))
    with client.messages.stream(**options) as stream:
        assert stream.get_final_message().usage.output_tokens == len(CALL)
        check_tool_use(stream.get_final_message())


def test_a_cut_off_call(client: anthropic.Anthropic, engine: FakeClient) -> None:
    engine.reply = CALL
    answer = client.messages.create(
        model=MODEL, max_tokens=len(CALL) - 15, messages=USER, tools=TOOLS
    )
    assert answer.stop_reason == "max_tokens"
    assert isinstance(answer.content[-1], anthropic.types.ToolUseBlock)
    assert answer.content[-1].input == {"INVALID_JSON": '{"a": '}


def test_count_tokens(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=USER, system="Be short.")
    assert counted.input_tokens == len("<system>Be short.<user>hi")


def test_error_classes(client: anthropic.Anthropic, url: str, engine: FakeClient) -> None:
    create = client.messages.create
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        create(model=MODEL, max_tokens=5, messages=USER, extra_body={"temperature": 9})
    with pytest.raises(anthropic.NotFoundError, match="fake-model"):
        create(model="claude", max_tokens=5, messages=USER)
    with pytest.raises(anthropic.AuthenticationError) as wrong:
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=0).messages.create(
            model=MODEL, max_tokens=5, messages=USER
        )
    assert wrong.value.body == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "The API key is missing or wrong"},
    }
    engine.raises = overloaded()
    with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
        create(model=MODEL, max_tokens=5, messages=USER)


def test_error_inside_a_stream(client: anthropic.Anthropic, engine: FakeClient) -> None:
    engine.fail_after = 2
    stream = client.messages.create(model=MODEL, max_tokens=9, messages=USER, stream=True)
    with pytest.raises(anthropic.APIError, match="could not finish"):
        list(stream)


def test_closing_a_stream_cancels_the_request(
    client: anthropic.Anthropic, engine: FakeClient
) -> None:
    engine.delay = 0.05
    stream = client.messages.create(model=MODEL, max_tokens=30, messages=USER, stream=True)
    next(iter(stream))
    before = len(engine.cancelled)
    stream.close()
    assert wait_until(lambda: len(engine.cancelled) > before)


async def _post(context: ServerContext, path: str, body: Any) -> Any:
    async with http_client(context) as http:
        return await http.post(path, json=body)


def rendered(**body: Any) -> dict[str, Any]:
    renderer = FakeRenderer()
    body = {"max_tokens": 5, **body}
    response = asyncio.run(_post(make_context(renderer=renderer), "/v1/messages", body))
    assert response.status_code == 200, response.text
    return renderer.last_chat


def test_blocks_become_chat_messages() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
    result = {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": [{"type": "text", "text": "42"}],
    }
    chat = rendered(
        system=[{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Q"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "A"},
                    use,
                ],
            },
            {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
        ],
    )
    function = {"name": "f", "arguments": '{"a": 1}'}
    assert chat["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {
            "role": "assistant",
            "content": "A",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "42"},
        {"role": "user", "content": "and?"},
    ]
    assert chat["continue_final_message"] is False


def test_a_last_message_of_the_assistant_is_continued() -> None:
    chat = rendered(messages=[*USER, {"role": "assistant", "content": "Well,"}])
    assert chat["continue_final_message"] is True
    assert chat["add_generation_prompt"] is False


def test_tools_and_thinking_reach_the_template() -> None:
    chat = rendered(messages=USER, tools=TOOLS, thinking={"type": "disabled"})
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert chat["template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("choice", "forced"),
    [
        ({"type": "auto"}, False),
        ({"type": "none"}, False),
        ({"type": "any", "disable_parallel_tool_use": True}, True),
        ({"type": "tool", "name": "f"}, True),
    ],
)
def test_tool_choice_is_enforced(choice: Any, forced: bool) -> None:
    client = FakeClient("x")
    body = {"max_tokens": 5, "messages": USER, "tools": TOOLS, "tool_choice": choice}
    response = asyncio.run(_post(make_context(client), "/v1/messages", body))
    assert response.status_code == 200, response.text
    assert (client.calls[0][1].structured_outputs is not None) is forced


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


BAD: list[tuple[Any, str]] = [
    ([], "object"),
    ({"messages": USER, "max_tokens": None}, "max_tokens"),
    ({"messages": USER, "max_tokens": 0}, "max_tokens"),
    ({"messages": USER, "max_tokens": 10**30}, "max_tokens"),
    ({"messages": USER, "max_tokens": "5"}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": ["x"]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (user("x"), "messages[0].content[0]"),
    (user({}), "messages[0].content[0].type"),
    (user({"type": "image", "source": {}}), "messages[0].content[0].type"),
    (user({"type": "text"}), "messages[0].content[0].text"),
    (user({"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
    (
        user({"type": "tool_result", "tool_use_id": "t", "content": 5}),
        "messages[0].content[0].content",
    ),
    (
        {
            "messages": [
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": 5}]}
            ]
        },
        "messages[0].content[0].name",
    ),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "t", "name": "f", "input": []}],
                }
            ]
        },
        "messages[0].content[0].input",
    ),
    ({"messages": USER, "system": 5}, "system"),
    ({"messages": USER, "system": [{"type": "image"}]}, "system[0].type"),
    ({"messages": USER, "temperature": 3}, "temperature"),
    ({"messages": USER, "top_k": "x"}, "top_k"),
    ({"messages": USER, "stop_sequences": "x"}, "stop_sequences"),
    ({"messages": USER, "stop_sequences": ["x"] * 17}, "stop"),
    ({"messages": USER, "stream": "yes"}, "stream"),
    ({"messages": USER, "tools": []}, "tools"),
    ({"messages": USER, "tools": [{}]}, "tools[0].name"),
    ({"messages": USER, "tools": [{"name": "f", "type": "web_search_20250305"}]}, "tools[0].type"),
    ({"messages": USER, "tools": [{"name": "f", "input_schema": "x"}]}, "tools[0].input_schema"),
    ({"messages": USER, "tool_choice": {"type": "any"}}, "tool_choice"),
    ({"messages": USER, "tool_choice": "any"}, "tool_choice"),
    ({"messages": USER, "tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice"),
    ({"messages": USER, "thinking": {"type": "deep"}}, "thinking.type"),
    ({"messages": USER, "output_config": {"effort": 5}}, "output_config.effort"),
    ({"messages": USER, "mcp_servers": [{}]}, "mcp_servers"),
    ({"messages": USER, "container": "x"}, "container"),
    ({"messages": USER, "n": 2}, "n"),
    ({"messages": USER * 5000}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "tokens"),
]


def test_bad_requests_are_refused_in_anthropics_shape_and_a_good_one_still_works() -> None:
    async def run() -> None:
        context = make_context()
        async with http_client(context) as http:
            for body, named in BAD:
                sent = {"max_tokens": 5, **body} if isinstance(body, dict) else body
                response = await http.post("/v1/messages", json=sent)
                assert response.status_code == 400, (body, response.text)
                answer = response.json()
                assert set(answer) == {"type", "error"}
                assert answer["type"] == "error"
                assert answer["error"]["type"] == "invalid_request_error"
                assert named in answer["error"]["message"], answer
                good = await http.post("/v1/messages", json={"max_tokens": 1, "messages": USER})
                assert good.json()["content"] == [{"type": "text", "text": "H"}]
            raw = await http.post("/v1/messages", content=b"{", headers={"content-type": "text/x"})
            assert (raw.status_code, raw.json()["type"]) == (415, "error")
            wrong = await http.get("/v1/messages")
            assert (wrong.status_code, wrong.json()["error"]["type"]) == (
                405,
                "invalid_request_error",
            )
        assert context.admission.num_open == 0

    asyncio.run(run())


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_a_schema_for_the_answer(name: str) -> None:
    client = FakeClient("x")
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    value = {"format": wanted, "effort": "low"} if name == "output_config" else wanted
    body = {"max_tokens": 5, "messages": USER, name: value}
    assert asyncio.run(_post(make_context(client), "/v1/messages", body)).status_code == 200
    outputs = client.calls[0][1].structured_outputs
    assert outputs is not None
    assert outputs.json == {"type": "object"}


def test_fields_without_effect_are_named() -> None:
    body = {"max_tokens": 1, "messages": USER, "metadata": {"user_id": "x"}}
    response = asyncio.run(_post(make_context(), "/v1/messages", body))
    assert response.headers["x-ignored-parameters"] == "metadata"
    assert json.loads(response.text)["usage"]["output_tokens"] == 1

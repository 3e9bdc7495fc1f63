"""`/v1/responses` with the official `openai` client, its store, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from api.fakes import MODEL, REPLY, FakeClient, FakeRenderer, http_client, make_context
from api.live import serve, wait_until
from pagemill.api.context import ApiSettings, ServerContext
from pagemill.api.responses_api.schema import DeletedResponse
from pagemill.api.responses_api.store import ResponseStore, UnknownResponse

KEY, OTHER_KEY = "sk-test", "sk-other"
TOOLS: list[Any] = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
CALL = '<think>hm</think>I look.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
TEMPLATE = "<think><tool_call>"


@pytest.fixture(scope="module")
def engine() -> FakeClient:
    return FakeClient()


@pytest.fixture(scope="module")
def context(engine: FakeClient) -> ServerContext:
    settings = ApiSettings(keys=(KEY, OTHER_KEY))
    return make_context(engine, settings, renderer=FakeRenderer(TEMPLATE))


@pytest.fixture(scope="module")
def url(context: ServerContext) -> Iterator[str]:
    with serve(context) as url:
        yield f"{url}/v1"


@pytest.fixture
def client(url: str, engine: FakeClient) -> Iterator[openai.OpenAI]:
    engine.reply, engine.raises, engine.fail_after, engine.delay = REPLY, None, None, 0.0
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def test_response(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL, input="hi", instructions="Be kind.", metadata={"a": "b"}
    )
    assert response.output_text == REPLY
    assert (response.status, response.object, response.model) == ("completed", "response", MODEL)
    assert (response.instructions, response.metadata) == ("Be kind.", {"a": "b"})
    (item,) = response.output
    assert item.type == "message"
    assert (item.role, item.status) == ("assistant", "completed")
    assert response.usage is not None
    assert response.usage.input_tokens == len("<system>Be kind.<user>hi")
    assert response.usage.output_tokens == len(REPLY)
    assert response.usage.input_tokens_details.cached_tokens == 2


def test_a_response_cut_off(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="hi", max_output_tokens=5)
    assert (response.status, response.output_text) == ("incomplete", "Hello")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]


def test_stream(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(model=MODEL, input="hi", max_output_tokens=2, stream=True)
    )
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(10))
    assert len({e.response.id for e in events if hasattr(e, "response")}) == 1


def check_call(response: Any) -> None:
    reasoning, message, call = response.output
    assert reasoning.type == "reasoning"
    assert [part.text for part in reasoning.content] == ["hm"]
    assert message.content[0].text == "I look."
    assert (call.type, call.name, call.arguments) == ("function_call", "f", '{"a": 1}')
    assert call.call_id
    assert response.status == "completed"


def test_reasoning_and_calls(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.reply = CALL
    whole = client.responses.create(model=MODEL, input="hi", tools=TOOLS)
    check_call(whole)
    with client.responses.stream(model=MODEL, input="hi", tools=TOOLS) as stream:
        events = list(stream)
        check_call(stream.get_final_response())
    kinds = {event.type for event in events}
    assert "response.function_call_arguments.delta" in kinds
    assert "response.reasoning_text.delta" in kinds
    ids = [item.id for item in whole.output]
    assert len(set(ids)) == 3


def test_the_conversation_goes_on(
    client: openai.OpenAI, engine: FakeClient, context: ServerContext
) -> None:
    engine.reply = CALL
    first = client.responses.create(model=MODEL, input="hi", tools=TOOLS, instructions="S")
    engine.reply = "Done."
    output: Any = {
        "type": "function_call_output",
        "call_id": first.output[-1].call_id,  # type: ignore[union-attr]
        "output": "42",
    }
    second = client.responses.create(model=MODEL, input=[output], previous_response_id=first.id)
    assert second.output_text == "Done."
    assert second.previous_response_id == first.id
    renderer = context.renderer
    assert isinstance(renderer, FakeRenderer)
    user, assistant, tool = renderer.last_chat["messages"]
    assert user == {"role": "user", "content": "hi"}
    assert (assistant["content"], assistant["reasoning_content"]) == ("I look.", "hm")
    assert assistant["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert tool == {"role": "tool", "tool_call_id": output["call_id"], "content": "42"}
    third = client.responses.create(model=MODEL, input="more", previous_response_id=second.id)
    assert [m["role"] for m in renderer.last_chat["messages"]][-2:] == ["assistant", "user"]
    assert third.status == "completed"


def test_a_conversation_goes_on_after_a_call_that_was_cut_off(
    client: openai.OpenAI, engine: FakeClient, context: ServerContext
) -> None:
    engine.reply = CALL
    first = client.responses.create(
        model=MODEL, input="hi", tools=TOOLS, max_output_tokens=len(CALL) - 15
    )
    assert first.status == "incomplete"
    assert first.output[-1].type == "function_call"
    engine.reply = "Done."
    second = client.responses.create(model=MODEL, input="go on", previous_response_id=first.id)
    assert second.output_text == "Done."
    assert isinstance(context.renderer, FakeRenderer)
    assert "tool_calls" not in context.renderer.last_chat["messages"][1]


def test_items_become_one_turn_of_the_assistant() -> None:
    renderer = FakeRenderer()
    context = make_context(renderer=renderer)
    given = [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": [{"type": "input_text", "text": "Q"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "R"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "A", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
    ]
    assert post(context, {"input": given}).status_code == 200
    messages = renderer.last_chat["messages"]
    assert [m["role"] for m in messages] == ["developer", "user", "assistant", "tool"]
    assert (messages[2]["content"], messages[2]["reasoning_content"]) == ("A", "R")
    assert [call["id"] for call in messages[2]["tool_calls"]] == ["c1", "c2"]


def test_fetch_and_delete(client: openai.OpenAI, url: str) -> None:
    made = client.responses.create(model=MODEL, input="hi")
    assert client.responses.retrieve(made.id) == made
    other = openai.OpenAI(base_url=url, api_key=OTHER_KEY, max_retries=0)
    with pytest.raises(openai.NotFoundError):
        other.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        other.responses.create(model=MODEL, input="hi", previous_response_id=made.id)
    with pytest.raises(openai.NotFoundError):
        other.responses.delete(made.id)
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_without_store_nothing_is_kept(client: openai.OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="hi", store=False)
    assert made.store is False  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_in_the_background(client: openai.OpenAI, engine: FakeClient) -> None:
    made = client.responses.create(model=MODEL, input="hi", background=True)
    assert made.status == "in_progress"
    assert wait_until(lambda: client.responses.retrieve(made.id).status == "completed", 5)
    assert client.responses.retrieve(made.id).output_text == REPLY
    assert client.responses.cancel(made.id).status == "completed"


def test_cancel_in_the_background(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.delay = 0.05
    made = client.responses.create(model=MODEL, input="hi", background=True)
    assert wait_until(lambda: bool(engine.open_ids), 5)
    assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.retrieve(made.id).status == "cancelled"
    assert not engine.open_ids


def test_delete_in_the_background(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.delay = 0.05
    made = client.responses.create(model=MODEL, input="hi", background=True)
    assert wait_until(lambda: bool(engine.open_ids), 5)
    client.responses.delete(made.id)
    assert wait_until(lambda: not engine.open_ids, 5)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_failure_in_the_background(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.fail_after = 3
    made = client.responses.create(model=MODEL, input="hi", background=True)
    assert wait_until(lambda: client.responses.retrieve(made.id).status == "failed", 5)
    error = client.responses.retrieve(made.id).error
    assert error is not None
    assert "0xdeadbeef" not in error.message


def test_cancel_a_stream(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.delay = 0.05
    stream = client.responses.create(model=MODEL, input="hi", stream=True)
    created = next(iter(stream))
    assert created.type == "response.created"
    assert client.responses.cancel(created.response.id).status == "cancelled"
    *_, last = stream
    assert last.type == "response.incomplete"
    assert last.response.status == "cancelled"


def test_a_client_that_leaves_its_stream(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.delay = 0.05
    stream = client.responses.create(model=MODEL, input="hi", stream=True)
    created = next(iter(stream))
    assert created.type == "response.created"
    stream.close()
    made = created.response.id
    assert wait_until(lambda: client.responses.retrieve(made).status == "cancelled", 5)


def test_error_inside_a_stream(client: openai.OpenAI, engine: FakeClient) -> None:
    engine.fail_after = 2
    *_, error, failed = client.responses.create(model=MODEL, input="hi", stream=True)
    assert error.type == "error"
    assert "could not finish" in error.message
    assert failed.type == "response.failed"
    assert failed.response.error is not None
    assert client.responses.retrieve(failed.response.id).status == "failed"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"text": {"format": {"type": "json_object"}}}, "json_object"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}, "json"),
        ({"tools": TOOLS, "tool_choice": "required"}, "grammar"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}}, "grammar"),
    ],
)
def test_the_form_is_enforced(options: Any, kind: str) -> None:
    engine = FakeClient("x")
    assert post(make_context(engine), {"input": "hi", **options}).status_code == 200
    outputs = engine.calls[0][1].structured_outputs
    assert getattr(outputs, kind) is not None


def test_the_store_is_bounded() -> None:
    store = ResponseStore(max_entries=3, max_bytes=10_000)
    for i in range(5):
        store.put("k", f"r{i}", DeletedResponse(f"r{i}"), [])
    with pytest.raises(UnknownResponse):
        store.get("k", "r1")
    store.get("k", "r2")
    store.put("k", "r5", DeletedResponse("r5"), [])
    store.get("k", "r2")
    with pytest.raises(UnknownResponse):
        store.get("k", "r3")
    store.put("k", "big", DeletedResponse("x"), [{"content": "x" * 9_990}])
    with pytest.raises(UnknownResponse):
        store.get("k", "r5")
    store.put("k", "huge", DeletedResponse("x"), [{"content": "x" * 20_000}])
    with pytest.raises(UnknownResponse):
        store.get("k", "huge")


def post(context: ServerContext, body: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with http_client(context) as http:
            return await http.post("/v1/responses", json=body)

    return asyncio.run(run())


BAD: list[tuple[Any, str]] = [
    ({}, "input"),
    ({"input": None}, "input"),
    ({"input": 5}, "input"),
    ({"input": []}, "input"),
    ({"input": ["x"]}, "input[0]"),
    ({"input": [{}]}, "input[0].role"),
    ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content[0].type",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
        "input[0].content[0].text",
    ),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].output"),
    ({"input": "x" * 5000}, "max_tokens"),
    ({"input": [{"role": "user", "content": "x"}] * 5000}, "messages"),
    ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    ({"input": "x", "max_output_tokens": "5"}, "max_output_tokens"),
    ({"input": "x", "temperature": 3}, "temperature"),
    ({"input": "x", "stream": 1}, "stream"),
    ({"input": "x", "stream_options": {}}, "stream_options"),
    ({"input": "x", "background": True, "stream": True}, "background"),
    ({"input": "x", "background": True, "store": False}, "background"),
    ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].function.name"),
    ({"input": "x", "tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    ({"input": "x", "tool_choice": "required"}, "tool_choice"),
    ({"input": "x", "tools": TOOLS, "tool_choice": {"type": "file_search"}}, "tool_choice"),
    (
        {
            "input": "x",
            "tools": TOOLS,
            "tool_choice": {"type": "function", "name": "f", "x": 10**30},
        },
        "tool_choice",
    ),
    ({"input": "x", "text": {"format": {"type": "yaml"}}}, "text.format.type"),
    ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ({"input": "x", "reasoning": {"effort": 5}}, "reasoning.effort"),
    ({"input": "x", "metadata": {"a": 1}}, "metadata[...]"),
    ({"input": "x", "metadata": {"a": "x" * 20_000}}, "metadata"),
    ({"input": "x", "truncation": "auto"}, "truncation"),
    ({"input": "x", "conversation": "c"}, "conversation"),
    ({"input": "x", "top_logprobs": 5}, "top_logprobs"),
    ({"input": "x", "messages": []}, "messages"),
]


def test_bad_requests_are_refused_and_a_good_one_still_works() -> None:
    async def run() -> list[str]:
        wrong = []
        context = make_context()
        async with http_client(context) as http:
            for body, param in BAD:
                response = await http.post("/v1/responses", json=body)
                assert response.status_code == 400, (body, response.text)
                if response.json()["error"]["param"] != param:
                    wrong.append(f"{body}: {response.text}")
                good = await http.post("/v1/responses", json={"input": "x", "store": False})
                assert good.json()["output"][0]["content"][0]["text"] == REPLY
            missing = {"input": "x", "previous_response_id": "resp-none"}
            response = await http.post("/v1/responses", json=missing)
            assert response.status_code == 404
            assert response.json()["error"]["param"] == "previous_response_id"
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
                response = await http.request(method, f"/v1/responses/resp-none{path}")
                assert response.status_code == 404
            response = await http.get("/v1/responses/resp-none?stream=true")
            assert response.json()["error"]["param"] == "stream"
        assert context.admission.num_open == 0
        return wrong

    assert asyncio.run(run()) == []

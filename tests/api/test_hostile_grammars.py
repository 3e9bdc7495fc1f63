"""Schemas made to be slow: they end, and nobody else's stream waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from api.fakes import REPLY, FakeClient, http_client, make_context
from pagemill.frontend.grammar_checks import GrammarChecks
from pagemill.frontend.outputs import ChoiceUpdate, Prompt
from pagemill.grammar import source
from pagemill.params import SamplingParams, StructuredOutputs


class CheckingClient(FakeClient):
    """Checks grammars as the real client does."""

    def __init__(self) -> None:
        super().__init__()
        self.checks = GrammarChecks()

    async def generate(
        self, prompt: Prompt, params: SamplingParams, *, request_id: str, **options: Any
    ) -> AsyncGenerator[ChoiceUpdate, None]:
        if params.structured_outputs is not None:
            await self.checks.check(params.structured_outputs)
        async for update in super().generate(prompt, params, request_id=request_id, **options):
            yield update


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


VARIANTS = [{"properties": {f"k{i}": {"type": "integer"}}, "type": "object"} for i in range(500)]
DISTINCT = [
    {"type": "object", "properties": {"k": {"const": f"v{i}"}}, "required": ["k"]}
    for i in range(500)
]
# The body's fields, and the text that the refusal has; None: served.
HOSTILE: dict[str, tuple[dict[str, Any], str | None]] = {
    "enum of 20,000": ({"json": {"enum": [f"v{i}" for i in range(20_000)]}}, None),
    "500 exclusive": ({"json": {"oneOf": DISTINCT}}, None),
    "500 that may overlap": ({"json": {"oneOf": VARIANTS}}, "oneOf"),
    "500 alternatives": ({"json": {"anyOf": VARIANTS}}, None),
    "deep": ({"json": nested(200)}, "nested deeper than"),
    "cycle": (
        {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
        "only refers to itself",
    ),
    "chain of references": (
        {
            "json": {
                "$ref": "#/$defs/0",
                "$defs": {
                    str(i): {"properties": {"k": {"$ref": f"#/$defs/{i + 1}"}}} for i in range(2500)
                }
                | {"2500": {}},
            }
        },
        "levels along its references",
    ),
    "remote": ({"json": {"$ref": "http://127.0.0.1:9/schema.json"}}, "outside the schema"),
    "repetitions": ({"regex": "(a{1,1000}){1,1000}"}, None),
    "chain of rules": (
        {
            "grammar": "start: a0\n"
            + "\n".join(f"a{i}: a{i + 1}" for i in range(9_000))
            + '\na9000: "x"'
        },
        "rules",
    ),
}


async def ask(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 64, **body})


@pytest.mark.parametrize("name", HOSTILE)
def test_served_or_refused_with_the_reason(name: str) -> None:
    fields, reason = HOSTILE[name]

    async def one() -> httpx.Response:
        async with http_client(make_context(CheckingClient())) as http:
            return await ask(http, structured_outputs=fields)

    response = asyncio.run(one())
    if reason is None:
        assert response.status_code == 200, response.text
    else:
        assert response.status_code == 400
        assert reason in response.json()["error"]["message"]


@pytest.mark.parametrize("chat", [False, True])
def test_other_streams_go_on_during_a_check(monkeypatch: pytest.MonkeyPatch, chat: bool) -> None:
    """Also where the schemas are those of tools."""
    started, release = threading.Event(), threading.Event()

    def slow(spec: StructuredOutputs) -> None:
        started.set()
        assert release.wait(10)

    monkeypatch.setattr(source, "check_grammar", slow)
    monkeypatch.setattr("pagemill.api.tools.choice.check_grammar", slow)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

    async def both() -> tuple[httpx.Response, httpx.Response]:
        async with http_client(make_context(CheckingClient())) as http:
            if chat:
                message = {"role": "user", "content": "x"}
                body = {"messages": [message], "tools": [tool], "tool_choice": "required"}
                asked = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            else:
                asked = asyncio.create_task(ask(http, structured_outputs={"regex": "a"}))
            while not started.is_set():
                await asyncio.sleep(0)
            stream = await ask(http, stream=True)
            assert not asked.done()
            release.set()
            return stream, await asked

    stream, checked = asyncio.run(both())
    assert stream.text.count("data: ") == len(REPLY) + 1
    assert checked.status_code == 200

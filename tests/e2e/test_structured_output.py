"""Structured output of a real model over HTTP: it validates, and hostile schemas stall nobody."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import jsonschema
import openai

from e2e.serving import RunningServer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PATTERN = "[A-Z]{2}-[0-9]{3}"
QUESTION = [{"role": "user", "content": "Describe a person."}]
MAX_GAP = 10.0  # seconds; one enum of 20,000 values alone stops others for minutes elsewhere
HOSTILE: list[dict[str, Any]] = [
    {"json": {"enum": [f"v{i}" for i in range(20_000)]}},
    {"json": {"oneOf": [{"properties": {f"k{i}": {}}, "type": "object"} for i in range(500)]}},
    {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
    {"json": {"$ref": "http://127.0.0.1:9/schema.json"}},
    {"regex": "(a{1,1000}){1,1000}"},
    {"choice": [f"c{i}" for i in range(20_000)]},
]


def test_samples_validate_streaming_and_not(server: RunningServer) -> None:
    """At temperature 1, with n, log-probabilities, and constraints of both kinds side by side."""

    model = server.get("/v1/models").json()["data"][0]["id"]

    async def ask(client: openai.AsyncOpenAI, seed: int) -> list[str]:
        options: dict[str, Any] = {
            "model": model,
            "messages": QUESTION,
            "temperature": 1.0,
            "seed": seed,
            "max_tokens": 200,
            "extra_body": {"structured_outputs": {"json": SCHEMA}},
        }
        if seed % 2:
            stream = await client.chat.completions.create(**options, stream=True)
            parts = [event.choices[0].delta.content or "" async for event in stream]
            return ["".join(parts)]
        answer = await client.chat.completions.create(**options, n=2, logprobs=True)
        for choice in answer.choices:
            tokens = choice.logprobs.content
            assert "".join(t.token for t in tokens).startswith(choice.message.content)
        return [choice.message.content for choice in answer.choices]

    async def by_regex(client: openai.AsyncOpenAI) -> str:
        answer = await client.completions.create(
            model=model, prompt="Code: ", max_tokens=30, extra_body={"guided_regex": PATTERN}
        )
        return answer.choices[0].text

    async def all_at_once() -> tuple[list[list[str]], str]:
        async with server.async_client() as client:
            asked = [ask(client, seed) for seed in range(4)]
            *texts, code = await asyncio.gather(*asked, by_regex(client))
            return texts, code

    texts, code = asyncio.run(all_at_once())
    for text in (text for own in texts for text in own):
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(code) == 6 and code[2] == "-"


def test_a_grammar_that_only_the_engine_can_refuse(server: RunningServer) -> None:
    """Which control tokens there are is known where the grammar meets the vocabulary."""
    body = {"prompt": "x", "structured_outputs": {"grammar": 'start: <|unheard|> "x"'}}
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for stream in (False, True):
            answer = http.post("/v1/completions", json={**body, "stream": stream})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "structured_outputs"
            assert "unknown special token" in answer.json()["error"]["message"]


def test_hostile_schemas_stall_no_other_stream(server: RunningServer) -> None:
    """Each is served or refused with a reason while somebody else's tokens keep coming."""

    async def stream(http: httpx.AsyncClient, ended: asyncio.Event) -> float:
        """The longest time without a token."""
        longest, last = 0.0, time.monotonic()
        body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        async with http.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    now = time.monotonic()
                    longest, last = max(longest, now - last), now
                if ended.is_set():
                    break
        assert ended.is_set(), "the stream was over before the schemas"
        return longest

    async def attack() -> tuple[float, list[httpx.Response]]:
        ended = asyncio.Event()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            other = asyncio.create_task(stream(http, ended))
            await asyncio.sleep(0.3)
            answers = await asyncio.gather(
                *(
                    http.post(
                        "/v1/completions",
                        json={"prompt": "x", "max_tokens": 8, "structured_outputs": fields},
                    )
                    for fields in HOSTILE
                )
            )
            ended.set()
            return await other, answers

    longest, answers = asyncio.run(attack())
    assert longest < MAX_GAP
    assert [answer.status_code for answer in answers] == [200, 400, 400, 400, 200, 200]
    for answer in answers:
        assert answer.status_code == 200 or answer.json()["error"]["message"]
    assert server.health() == 200

"""What `vllm bench serve` and guidellm send, and how they read the answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from api.fakes import MODEL, FakeClient, http_client, make_context, sse_events

USAGE = {"include_usage": True}
VLLM = {
    "model": MODEL,
    "repetition_penalty": 1.0,
    "logprobs": None,
    "stream": True,
    "stream_options": USAGE,
    "ignore_eos": True,
}
GUIDELLM = {
    "model": MODEL,
    "stream": True,
    "stream_options": {**USAGE, "continuous_usage_stats": True},
    "max_tokens": 8,
    "stop": None,
    "ignore_eos": True,
}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "abc"}]}]
REQUESTS = [
    ("/v1/completions", {**VLLM, "prompt": "abc", "max_tokens": 8}),
    ("/v1/completions", {**VLLM, "prompt": [97, 98, 99], "max_tokens": 8, "temperature": 0.0}),
    (
        "/v1/chat/completions",
        {**VLLM, "messages": PARTS, "max_completion_tokens": 8},
    ),
    ("/v1/completions", {**GUIDELLM, "prompt": "abc"}),
    ("/v1/chat/completions", {**GUIDELLM, "messages": PARTS, "max_completion_tokens": 8}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_streams_are_read_as_these_clients_read_them(path: str, body: dict[str, Any]) -> None:
    async def run() -> list[str]:
        async with http_client(make_context(FakeClient())) as http:
            names = (await http.get("/v1/models")).json()["data"]
            assert names[0]["id"] == MODEL
            response = await http.post(path, json=body)
        assert response.status_code == 200, response.text
        return sse_events(response.text)

    *chunks, done = asyncio.run(run())
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    with_choices = [chunk for chunk in parsed if chunk["choices"]]
    texts = [c["choices"][0].get("text") or c["choices"][0].get("delta") for c in with_choices]
    assert len([text for text in texts if text]) >= 8
    assert parsed[-1]["choices"] == []
    assert parsed[-1]["usage"]["completion_tokens"] == 8
    assert parsed[-1]["usage"]["prompt_tokens"] > 0

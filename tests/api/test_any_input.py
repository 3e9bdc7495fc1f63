"""Whatever stands in a field, the answer is a 200 or names an error of the client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from api.fakes import FakeClient, http_client, make_context, pooling_client
from pagemill.api.anthropic.schema import CountTokensRequest, MessagesRequest
from pagemill.api.responses_api.schema import ResponsesRequest
from pagemill.api.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from pagemill.api.vectors.schema import (
    EmbeddingRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from pagemill.config.pooling import PoolingConfig

USER = [{"role": "user", "content": "hi"}]
DEEP: Any = json.loads("[" * 80 + "]" * 80)
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    10**30,
    -(10**30),
    0.5,
    1e308,
    "",
    "x",
    "\x00\ud7ff\U0001f600",
    "x" * 3000,
    [],
    [None],
    ["x"],
    [1],
    [[]],
    [{}],
    [10**30],
    {},
    {"x": 1},
    {"type": "function"},
    {"type": "json_schema", "json_schema": {"schema": {"a": 10**30}}},
    {"regex": ""},
    {"1": 1},
    DEEP,
    {"json": {"x": DEEP}},
    [{"role": "user", "content": "x", "name": DEEP, "tool_calls": [{"function": {}}]}],
    [{"role": "tool", "content": [{"type": "text", "text": "x"}]}],
    [{"type": "function", "function": {"name": "f", "parameters": {"x": DEEP}}}],
]
ENDPOINTS: list[tuple[str, dict[str, Any], Any]] = [
    ("/v1/completions", {"prompt": "x", "max_tokens": 2}, CompletionRequest),
    ("/v1/chat/completions", {"messages": USER, "max_tokens": 2}, ChatRequest),
    ("/v1/responses", {"input": "x", "max_output_tokens": 2}, ResponsesRequest),
    ("/v1/messages", {"messages": USER, "max_tokens": 2}, MessagesRequest),
    ("/v1/messages/count_tokens", {"messages": USER}, CountTokensRequest),
    ("/tokenize", {"prompt": "x"}, TokenizeRequest),
    ("/detokenize", {}, DetokenizeRequest),
    ("/v1/embeddings", {"input": "x"}, EmbeddingRequest),
    ("/pooling", {"input": "x"}, PoolingRequest),
    ("/v1/score", {"text_1": "x", "text_2": "y"}, ScoreRequest),
    ("/v1/rerank", {"query": "x", "documents": ["y"]}, RerankRequest),
]
VECTORS = (EmbeddingRequest, PoolingRequest, ScoreRequest, RerankRequest)
POOLING = PoolingConfig(task="embed", method="mean", width=4, dimensions=())


@pytest.mark.parametrize(
    ("path", "good", "kind"), ENDPOINTS, ids=[path for path, _, _ in ENDPOINTS]
)
def test_every_field_with_every_value(path: str, good: dict[str, Any], kind: Any) -> None:
    async def run() -> None:
        client = pooling_client(POOLING) if kind in VECTORS else FakeClient()
        context = make_context(client)
        async with http_client(context) as http:
            for name in kind.__struct_fields__:
                for value in VALUES:
                    response = await http.post(path, json={**good, name: value})
                    case = f"{name} = {str(value)[:80]}: {response.text[:200]}"
                    assert response.status_code in (200, 400, 404), case
                    if response.status_code != 200 and "messages" not in path:
                        assert response.json()["error"]["code"] == response.status_code, case
        assert not client.open_ids
        assert context.admission.num_open == 0

    asyncio.run(run())

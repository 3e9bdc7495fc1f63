"""The endpoints for vectors, on an engine that counts letters."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from api.fakes import (
    MAX_MODEL_LEN,
    MODEL,
    FakeClient,
    FakeRenderer,
    http_client,
    make_context,
    metric,
    overloaded,
    pooling_client,
)
from api.live import send_and_leave, serve, wait_until
from pagemill.api.context import ApiSettings, Limits
from pagemill.config.pooling import PoolingConfig
from pagemill.errors import PageMillError

EMBEDDER = PoolingConfig(task="embed", method="mean", width=4)
MATRYOSHKA = PoolingConfig(task="embed", method="mean", width=4, dimensions=(2, 4))
CROSS_ENCODER = PoolingConfig(task="classify", method="cls", width=1, labels=("LABEL_0",))
FOREVER = 60.0
CLASSIFIER = PoolingConfig(task="classify", method="cls", width=3, labels=("ant", "bee", "cat"))


def post(
    client: FakeClient,
    path: str,
    body: dict[str, Any],
    settings: ApiSettings | None = None,
    **headers: str,
) -> httpx.Response:
    async def run() -> httpx.Response:
        context = make_context(client, settings)
        async with http_client(context) as http:
            response = await http.post(path, json=body, headers=headers)
        assert context.admission.num_open == 0 and not client.open_ids
        return response

    return asyncio.run(run())


def answer(pooling: PoolingConfig, path: str, **body: Any) -> dict[str, Any]:
    response = post(pooling_client(pooling), path, body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def refusal(client: FakeClient, path: str, **body: Any) -> dict[str, Any]:
    response = post(client, path, body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_openai_client_reads_both_encodings() -> None:
    with serve(make_context(pooling_client(EMBEDDER))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        coded = client.embeddings.create(model=MODEL, input=["aab", "d"])  # asks for base64
        plain = client.embeddings.create(model=MODEL, input="aab", encoding_format="float")
    assert [item.embedding for item in coded.data] == [[2, 1, 0, 0], [0, 0, 0, 1]]
    assert [item.index for item in coded.data] == [0, 1]
    assert plain.data[0].embedding == [2, 1, 0, 0]
    assert (coded.usage.prompt_tokens, coded.usage.total_tokens) == (4, 4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ab", [[1, 1, 0, 0]]),
        (["a", "b"], [[1, 0, 0, 0], [0, 1, 0, 0]]),
        ([97, 97], [[2, 0, 0, 0]]),
        ([[97], [98, 98]], [[1, 0, 0, 0], [0, 2, 0, 0]]),
    ],
)
def test_forms_of_input(given: Any, expected: list[list[int]]) -> None:
    found = answer(EMBEDDER, "/v1/embeddings", input=given)
    assert [item["embedding"] for item in found["data"]] == expected
    assert found["object"] == "list" and found["data"][0]["object"] == "embedding"
    assert found["usage"]["completion_tokens"] == 0
    assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == len(expected)


def test_base64_is_little_endian_float32() -> None:
    found = answer(EMBEDDER, "/v1/embeddings", input="dda", encoding_format="base64")
    data = base64.b64decode(found["data"][0]["embedding"])
    assert np.frombuffer(data, "<f4").tolist() == [1, 0, 0, 2]


def test_the_request_id_is_in_the_answer_and_user_has_no_effect() -> None:
    client = pooling_client(EMBEDDER)
    body = {"input": "a", "request_id": "mine", "user": "someone"}
    response = post(client, "/v1/embeddings", body)
    assert response.json()["id"] == "embd-mine"
    assert response.headers["x-ignored-parameters"] == "user"


def test_dimensions_where_the_model_allows_them() -> None:
    found = answer(MATRYOSHKA, "/v1/embeddings", input="ab", dimensions=2)
    assert found["data"][0]["embedding"] == [1, 1]
    error = refusal(pooling_client(MATRYOSHKA), "/v1/embeddings", input="a", dimensions=3)
    assert error["param"] == "dimensions" and "2, 4" in error["message"]
    error = refusal(pooling_client(EMBEDDER), "/v1/embeddings", input="a", dimensions=2)
    assert error["param"] == "dimensions" and "matryoshka" in error["message"]


def test_texts_that_are_too_long() -> None:
    long = "a" * (MAX_MODEL_LEN + 9)
    for given in (long, [97] * (MAX_MODEL_LEN + 1)):
        error = refusal(pooling_client(EMBEDDER), "/v1/embeddings", input=given)
        assert str(MAX_MODEL_LEN) in error["message"] and error["param"] == "input"
    for keep, count in ((-1, MAX_MODEL_LEN), (7, 7)):
        for given in (long, [97] * (MAX_MODEL_LEN + 1)):
            body = {"input": given, "truncate_prompt_tokens": keep}
            found = answer(EMBEDDER, "/v1/embeddings", **body)
            assert found["data"][0]["embedding"][0] == count
            assert found["usage"]["prompt_tokens"] == count


def test_pooling_gives_vectors_of_tokens_or_of_texts() -> None:
    found = answer(EMBEDDER, "/pooling", input=["ab"], task="token_embed")
    assert found["data"] == [{"index": 0, "object": "pooling", "data": [[1, 1, 0, 0]] * 2}]
    found = answer(EMBEDDER, "/pooling", input=["ab"])
    assert found["data"][0]["data"] == [1, 1, 0, 0]
    error = refusal(pooling_client(EMBEDDER), "/pooling", input="a", task="classify")
    assert error["param"] == "task"


def test_vectors_of_all_tokens_are_bounded_together() -> None:
    settings = ApiSettings(limits=Limits(max_numbers=4 * 9))
    for lengths, status in (([4, 5], 200), ([4, 6], 400)):
        body = {"input": ["a" * length for length in lengths], "task": "token_embed"}
        client = pooling_client(EMBEDDER)
        response = post(client, "/pooling", body, settings)
        assert response.status_code == status
        assert len(client.pooled) == (2 if status == 200 else 0)
    assert response.json()["error"]["param"] == "input"


@pytest.mark.parametrize("path", ["/v1/score", "/v1/rerank"])
@pytest.mark.parametrize(("length", "status"), [(50, 200), (100, 400)])
def test_a_text_that_is_in_many_pairs_is_counted_in_each(
    path: str, length: int, status: int
) -> None:
    settings = ApiSettings(limits=Limits(max_body_bytes=250))
    texts, text = ["a", "b", "c", "d"], "x" * length
    body = {"query": text, "documents": texts}
    if path == "/v1/score":
        body = {"text_1": text, "text_2": texts}
    client = pooling_client(CROSS_ENCODER)
    response = post(client, path, body, settings)
    assert response.status_code == status
    assert len(client.pooled) == (4 if status == 200 else 0)


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_scores_of_pairs(path: str) -> None:
    found = answer(CROSS_ENCODER, path, text_1="a", text_2=["b", "aa"])
    assert found["data"] == [
        {"index": 0, "object": "score", "score": 1.0},
        {"index": 1, "object": "score", "score": 3.0},
    ]
    found = answer(CROSS_ENCODER, path, text_1=["a", "b"], text_2=["b", "b"])
    assert [item["score"] for item in found["data"]] == [1, 0]
    found = answer(EMBEDDER, path, text_1="ab", text_2=["ab", "d", "a"])
    expected = [1, 0, 0.5**0.5]
    assert [item["score"] for item in found["data"]] == pytest.approx(expected)
    assert found["usage"]["prompt_tokens"] == 4  # a text is embedded once


def test_a_cross_encoder_reads_both_texts_at_once() -> None:
    client = pooling_client(CROSS_ENCODER)
    post(client, "/v1/score", {"text_1": "abc", "text_2": "de", "use_activation": False})
    [(prompt, params)] = client.pooled
    assert bytes(prompt.token_ids) == b"abcde"
    assert (params.second_text, params.use_activation) == (3, False)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_the_best_documents_come_first(path: str) -> None:
    documents = ["b", {"text": "aa"}, "a"]
    found = answer(CROSS_ENCODER, path, query="x", documents=documents)
    assert [(r["index"], r["relevance_score"]) for r in found["results"]] == [
        (1, 2.0),
        (2, 1.0),
        (0, 0.0),
    ]
    assert found["results"][0]["document"] == {"text": "aa"}
    assert found["usage"]["total_tokens"] == 7
    short = answer(
        CROSS_ENCODER, path, query="x", documents=documents, top_n=2, return_documents=False
    )
    assert short["results"] == [
        {"index": 1, "relevance_score": 2.0},
        {"index": 2, "relevance_score": 1.0},
    ]


def test_classes() -> None:
    found = answer(CLASSIFIER, "/classify", input=["bba", "c"])
    assert found["data"][0] == {"index": 0, "label": "bee", "probs": [1, 2, 0], "num_classes": 3}
    assert found["data"][1]["label"] == "cat"


VECTORS = {
    "/v1/embeddings": {"input": "a"},
    "/pooling": {"input": "a"},
    "/classify": {"input": "a"},
    "/v1/score": {"text_1": "a", "text_2": "b"},
    "/score": {"text_1": "a", "text_2": "b"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v2/rerank": {"query": "a", "documents": ["b"]},
    "/rerank": {"query": "a", "documents": ["b"]},
}
CHAT = [{"role": "user", "content": "hi"}]
TEXT = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": CHAT},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": CHAT, "max_tokens": 4},
}


@pytest.mark.parametrize("path", VECTORS)
def test_a_model_of_text_says_that_it_makes_no_vectors(path: str) -> None:
    assert "generates text" in refusal(FakeClient(), path, **VECTORS[path])["message"]


@pytest.mark.parametrize("path", TEXT)
@pytest.mark.parametrize("pooling", [EMBEDDER, CROSS_ENCODER])
def test_a_model_of_vectors_says_that_it_makes_no_text(path: str, pooling: PoolingConfig) -> None:
    assert "no text" in refusal(pooling_client(pooling), path, **TEXT[path])["message"]


def test_endpoints_of_the_other_kind_of_vectors() -> None:
    error = refusal(pooling_client(CLASSIFIER), "/v1/embeddings", input="a")
    assert "no embeddings" in error["message"]
    error = refusal(pooling_client(EMBEDDER), "/classify", input="a")
    assert "/v1/embeddings" in error["message"]
    error = refusal(pooling_client(CLASSIFIER), "/v1/score", text_1="a", text_2="b")
    assert "cross-encoder" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": [[]]}, "input"),
        ("/v1/embeddings", {"input": ["a", 97]}, "input"),
        ("/v1/embeddings", {"input": [999]}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 2.5}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        (
            "/v1/embeddings",
            {"input": [1], "truncate_prompt_tokens": 9999},
            "truncate_prompt_tokens",
        ),
        ("/v1/embeddings", {"input": "a", "priority": 3}, "priority"),
        ("/v1/embeddings", {"input": "a", "request_id": "a/b"}, "request_id"),
        ("/v1/embeddings", {"input": "a", "stream": True}, "stream"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": [], "text_2": ["a"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [5]}, "documents[0]"),
        ("/v1/rerank", {"query": "a", "documents": [{"image": "x"}]}, "documents[0].image"),
        ("/v1/rerank", {"query": "a", "documents": ["b"] * 2049}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ("/pooling", {"input": "a", "task": "dance"}, "task"),
    ],
)
def test_bad_requests_name_the_field(path: str, body: dict[str, Any], param: str) -> None:
    assert refusal(pooling_client(EMBEDDER), path, **body)["param"] == param


def test_an_engine_that_is_full_says_when_to_come_back() -> None:
    response = post(pooling_client(EMBEDDER, raises=overloaded()), "/v1/embeddings", {"input": "a"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "7"


def test_an_engine_that_gives_up_keeps_its_reasons() -> None:
    client = pooling_client(EMBEDDER, raises=PageMillError("secret 0xdeadbeef"))
    response = post(client, "/v1/embeddings", {"input": "a"})
    assert response.status_code == 500
    assert "0xdeadbeef" not in response.text and "could not finish" in response.text


def test_a_client_that_leaves_cancels_its_request() -> None:
    client = pooling_client(EMBEDDER, first_delay=30.0)
    context = make_context(client)
    with serve(context) as url:
        send_and_leave(url, "/v1/embeddings", {"input": "a"}, client)
        assert wait_until(lambda: len(client.cancelled) == 1)
    answered = {"method": "POST", "handler": "/v1/embeddings", "status": "499"}
    assert context.metrics.registry.get_sample_value("http_requests_total", answered) == 1


@pytest.mark.parametrize(
    ("pooling", "path", "body"),
    [
        (EMBEDDER, "/v1/embeddings", {"input": ["a", "b"]}),
        (EMBEDDER, "/pooling", {"input": ["a", "b"]}),
        (CLASSIFIER, "/classify", {"input": ["a", "b"]}),
        (CROSS_ENCODER, "/v1/score", {"text_1": "a", "text_2": ["b", "c"]}),
        (CROSS_ENCODER, "/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
    ],
)
def test_an_aborted_request_is_no_fault_of_the_server(
    pooling: PoolingConfig, path: str, body: dict[str, Any]
) -> None:
    async def run() -> None:
        client = pooling_client(pooling, first_delay=FOREVER)
        context = make_context(client, ApiSettings(admin_keys=("root",)))
        async with http_client(context, headers={"authorization": "Bearer root"}) as http:
            running = asyncio.create_task(http.post(path, json={**body, "request_id": "mine"}))
            while not client.open_ids:
                await asyncio.sleep(0.001)
            aborted = await http.post("/abort", json={"request_ids": ["mine"]})
            assert aborted.json() == {"aborted": 1}
            answer = await running
        assert (answer.status_code, answer.json()["error"]["code"]) == (499, 499)
        assert metric(context, "vllm:request_success_total", finished_reason="abort") == 2
        assert metric(context, "vllm:request_success_total", finished_reason="error") == 0

    asyncio.run(run())


def test_metrics_and_the_probe() -> None:
    async def run() -> None:
        context = make_context(pooling_client(EMBEDDER))
        async with http_client(context) as http:
            await http.post("/v1/embeddings", json={"input": ["abc", "d"]})
            assert (await http.get("/health?generate=1")).status_code == 200
        assert metric(context, "vllm:prompt_tokens_total") == 4
        assert metric(context, "vllm:request_success_total", finished_reason="stop") == 2
        assert metric(context, "vllm:e2e_request_latency_seconds_count") == 2

    asyncio.run(run())


def test_suffix_goes_to_models_that_fill_in_the_middle() -> None:
    async def run() -> tuple[bytes, httpx.Response, httpx.Response]:
        renderer, client = FakeRenderer(), FakeClient()
        body = {"prompt": "def f(", "suffix": "return x"}
        async with http_client(make_context(client, renderer=renderer)) as http:
            refused = await http.post("/v1/completions", json=body)
            renderer.fills_in = True
            await http.post("/v1/completions", json=body)
            tokens = await http.post("/v1/completions", json={**body, "prompt": [1, 2]})
        return bytes(client.calls[0][0].token_ids), refused, tokens

    prompt, refused, tokens = asyncio.run(run())
    assert prompt == b"<P>def f(<S>return x<M>"
    for response in (refused, tokens):
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "suffix"

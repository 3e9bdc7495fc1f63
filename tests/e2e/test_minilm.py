"""A real embedding model, all-MiniLM-L6-v2, offline and behind a server, against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from e2e.serving import RunningServer, serve
from pagemill import LLM
from pagemill.checkpoint.builtin import builtin_path

NAME = "all-MiniLM-L6-v2"
TEXTS = [
    "How many people live in Berlin?",
    "Berlin has a population of 3.5 million registered inhabitants.",
    "New York City is famous for its Metropolitan Museum of Art. " * 9,
    "Ünïcödé, 数字 and emoji 🙂",
    "x",
    "",
]


def expected(texts: list[str]) -> NDArray[np.float32]:
    """The mean of transformers' states with padding, normalised, as sentence-transformers does."""
    folder = builtin_path("minilm", Path())
    model = AutoModel.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    means = (states * mask).sum(1) / mask.sum(1)
    result: NDArray[np.float32] = torch.nn.functional.normalize(means).numpy()
    return result


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serve(tmp_path_factory.mktemp("minilm"), "minilm") as running:
        running.wait_ready()
        yield running


def test_offline_embeddings_are_those_of_transformers() -> None:
    llm = LLM("minilm", dtype="float32")
    texts = [*TEXTS, *(f"number {i} " * i for i in range(20))]
    outputs = llm.embed(texts, use_tqdm=False)
    found = np.array([output.outputs.embedding for output in outputs], np.float32)
    reference = expected(texts)
    assert np.abs(found - reference).max() < 1e-4
    assert (found * reference).sum(axis=1).min() > 0.9999
    alone = np.array(llm.embed(TEXTS, use_tqdm=False)[2].outputs.embedding)
    assert np.abs(alone - found[2]).max() < 1e-5  # products of other sizes round differently
    berlin, moma = llm.score(TEXTS[0], TEXTS[1:3], use_tqdm=False)
    assert berlin.outputs.score > 0.5 > moma.outputs.score
    llm.shutdown()


def test_served_embeddings_are_the_same(minilm: RunningServer) -> None:
    response = minilm.client().embeddings.create(model=NAME, input=TEXTS)
    found = np.array([item.embedding for item in response.data])
    assert np.abs(found - expected(TEXTS)).max() < 1e-4
    ranking = httpx.post(
        f"{minilm.url}/v1/rerank", json={"query": TEXTS[0], "documents": TEXTS[1:3], "top_n": 1}
    ).json()
    assert [result["index"] for result in ranking["results"]] == [0]
    assert ranking["results"][0]["relevance_score"] == pytest.approx(found[0] @ found[1], abs=1e-4)


def test_more_inputs_than_the_engine_holds_and_a_client_that_leaves(minilm: RunningServer) -> None:
    response = minilm.client().embeddings.create(model=NAME, input=["a", *["b"] * 600, "a"])
    assert [item.index for item in response.data] == list(range(602))
    assert response.data[0].embedding == pytest.approx(response.data[601].embedding, abs=1e-5)
    assert response.data[0].embedding != response.data[300].embedding
    with pytest.raises(httpx.ReadTimeout):
        long = {"input": ["word " * 200] * 2000}
        httpx.post(f"{minilm.url}/v1/embeddings", json=long, timeout=1.0)
    minilm.wait(minilm.is_idle, 30)


def test_an_embedding_server_is_told_from_one_of_text(minilm: RunningServer) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    response = httpx.post(f"{minilm.url}/v1/chat/completions", json=chat)
    assert response.status_code == 400
    assert "no text" in response.json()["error"]["message"]
    assert "/v1/embeddings" in minilm.output()  # what the console says to try
    assert minilm.is_idle()
    assert minilm.interrupt() == 0

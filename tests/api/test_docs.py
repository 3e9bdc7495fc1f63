"""`docs/api.md` says of every endpoint, field, error and metric what the code does with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api.fakes import make_context
from pagemill.api.anthropic.schema import MessagesRequest
from pagemill.api.app import ENDPOINTS
from pagemill.api.batch.objects import CreateBatch
from pagemill.api.responses_api.schema import ResponsesRequest
from pagemill.api.schema import (
    NO_EFFECT,
    REFUSED,
    AbortRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from pagemill.api.vectors.schema import (
    ClassifyRequest,
    EmbeddingRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (works|no effect|refused) \|", re.MULTILINE)
SECTIONS = {part.partition("\n")[0]: dict(ROW.findall(part)) for part in PAGE.split("\n## ")}
RESPONSES = SECTIONS.pop("Responses (OpenAI)")
MESSAGES = SECTIONS.pop("Messages (Anthropic)")
VECTOR_ROW = re.compile(r"^\| `(\w+)` \| ([\w, ]+) \| (works|no effect|refused) \|", re.MULTILINE)
VECTORS = VECTOR_ROW.findall(PAGE.partition("\n## Vectors")[2].partition("\n## ")[0])
VECTOR_REQUESTS = {
    "embeddings": EmbeddingRequest,
    "pooling": PoolingRequest,
    "classify": ClassifyRequest,
    "score": ScoreRequest,
    "rerank": RerankRequest,
}
STATUS = {name: status for rows in SECTIONS.values() for name, status in rows.items()}


def expected_status(name: str) -> str:
    if name in NO_EFFECT:
        return "no effect"
    return "refused" if name in REFUSED else "works"


@pytest.mark.parametrize(
    "name", [*CompletionRequest.__struct_fields__, *ChatRequest.__struct_fields__]
)
def test_field_is_described_as_it_is(name: str) -> None:
    assert STATUS.get(name) == expected_status(name)


def test_no_field_is_described_that_does_not_exist() -> None:
    fields = {*CompletionRequest.__struct_fields__, *ChatRequest.__struct_fields__}
    assert set(STATUS) <= fields


def test_fields_of_messages_are_described_as_they_are() -> None:
    assert {name: expected_status(name) for name in MessagesRequest.__struct_fields__} == MESSAGES


def test_fields_of_responses_are_described_as_they_are() -> None:
    expected = {name: expected_status(name) for name in ResponsesRequest.__struct_fields__}
    assert {**expected, "metadata": "works", "store": "works"} == RESPONSES


@pytest.mark.parametrize(("name", "kind"), VECTOR_REQUESTS.items())
def test_fields_of_vectors_are_described_as_they_are(name: str, kind: type) -> None:
    described = {
        field: status
        for field, endpoints, status in VECTORS
        if endpoints == "all" or name in endpoints.split(", ")
    }
    fields = kind.__struct_fields__  # type: ignore[attr-defined]
    assert {field: expected_status(field) for field in fields} == described


@pytest.mark.parametrize("kind", [TokenizeRequest, DetokenizeRequest, AbortRequest])
def test_fields_of_small_endpoints_are_named(kind: type) -> None:
    section = PAGE.partition("## Tokenize")[2].partition("\n## ")[0]
    fields = set(kind.__struct_fields__) - {"model"} - REFUSED.keys()  # type: ignore[attr-defined]
    assert fields <= set(re.findall(r"`(\w+)`", section))


def test_fields_of_batches_are_named() -> None:
    section = PAGE.partition("## Files and batches")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| `(\w+)` \| `/v1/batches` \|", section, re.MULTILINE))
    assert rows == set(CreateBatch.__struct_fields__)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: e.path)
def test_endpoint_is_listed_with_its_access(endpoint: object) -> None:
    path = endpoint.path.replace(":path}", "}")  # type: ignore[attr-defined]
    access = {"public": "no", "key": "yes", "admin": "admin"}[endpoint.access]  # type: ignore[attr-defined]
    assert f"| `{endpoint.method} {path}` | {access} |" in PAGE  # type: ignore[attr-defined]


def test_every_metric_is_listed() -> None:
    families = make_context().metrics.registry.collect()
    names = {
        f.name.removesuffix("_total") for f in families if f.name.startswith(("vllm:", "http_"))
    }
    assert names
    listed = {name.removesuffix("_total") for name in re.findall(r"`((?:vllm:|http_)\w+)`", PAGE)}
    assert names == listed

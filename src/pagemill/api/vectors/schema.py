"""What the endpoints for vectors understand, under OpenAI's, vLLM's, Jina's and Cohere's names.

As in `api/schema.py`, a field that is not here is refused by name, and `null` means "not given".
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pagemill.api.schema import Int64, Text
from pagemill.params import PoolingTask

Encoding = Literal["float", "base64"]


class VectorFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields that all of these endpoints share."""

    model: str | None = None
    truncate_prompt_tokens: int | None = None
    use_activation: bool | None = None
    priority: Int64 | None = None
    request_id: str | None = None

    user: Any = None


class InputFields(VectorFields, kw_only=True, forbid_unknown_fields=True):
    """`input` is a text, a list of texts, token ids, or lists of those."""

    input: Text
    add_special_tokens: bool | None = None


class EmbeddingRequest(InputFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/embeddings`."""

    encoding_format: Encoding | None = None
    dimensions: int | None = None


class PoolingRequest(InputFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /pooling`."""

    task: PoolingTask | None = None
    encoding_format: Encoding | None = None
    dimensions: int | None = None


class ClassifyRequest(InputFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /classify`."""


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """A document to rank."""

    text: str


class RerankRequest(VectorFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/rerank`."""

    query: str
    documents: list[str | Document]
    top_n: int | None = None
    return_documents: bool | None = None


class ScoreRequest(VectorFields, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/score`."""

    text_1: str | list[str]
    text_2: str | list[str]

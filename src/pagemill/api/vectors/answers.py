"""The answers of the endpoints for vectors."""

from __future__ import annotations

import base64

import msgspec
import numpy as np
from numpy.typing import NDArray

from pagemill.api.responses import Usage
from pagemill.api.vectors.schema import Document, Encoding

Vector = list[float] | str  # a base64 text is float32, little-endian


class AnswerList(msgspec.Struct, kw_only=True):
    """What answers share that have one item of `data` for each input, or pair."""

    id: str
    object: str = "list"
    created: int
    model: str
    usage: Usage


class Embedding(msgspec.Struct, kw_only=True):
    """The embedding of one input."""

    index: int
    object: str = "embedding"
    embedding: Vector


class EmbeddingList(AnswerList, kw_only=True):
    """The answer of `/v1/embeddings`."""

    data: list[Embedding]


class PooledData(msgspec.Struct, kw_only=True):
    """One input's vector, or one for each of its tokens."""

    index: int
    object: str = "pooling"
    data: list[float | list[float]] | str


class PooledList(AnswerList, kw_only=True):
    """The answer of `/pooling`."""

    data: list[PooledData]


class Classification(msgspec.Struct, kw_only=True):
    """The most likely label of one input, and the numbers of all labels."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassificationList(AnswerList, kw_only=True):
    """The answer of `/classify`."""

    data: list[Classification]


class Score(msgspec.Struct, kw_only=True):
    """How well the two texts of a pair fit."""

    index: int
    object: str = "score"
    score: float


class ScoreList(AnswerList, kw_only=True):
    """The answer of `/v1/score`."""

    data: list[Score]


class Ranked(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One document, `index` being its place in the request."""

    index: int
    relevance_score: float
    document: Document | None = None


class Ranking(msgspec.Struct, kw_only=True):
    """The answer of `/v1/rerank`: the best documents first."""

    id: str
    model: str
    results: list[Ranked]
    usage: Usage


def encoded(values: NDArray[np.float32], encoding: Encoding | None) -> Vector:
    """A vector as JSON has it."""
    if encoding == "base64":
        return _base64(values)
    numbers: list[float] = values.tolist()
    return numbers


def encoded_rows(
    values: NDArray[np.float32], encoding: Encoding | None
) -> list[float | list[float]] | str:
    """A vector, or one for each token."""
    if encoding == "base64":
        return _base64(values)
    rows: list[float | list[float]] = values.tolist()
    return rows


def _base64(values: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()

"""What the offline API returns for requests of vectors. Names and shapes are vLLM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pagemill.frontend.outputs import PooledOutput, Prompt


@dataclass(slots=True)
class PoolingOutput:
    """`data` is [width], or [num_tokens, width] for vectors of tokens."""

    data: NDArray[np.float32]


@dataclass(slots=True)
class EmbeddingOutput:
    """One embedding."""

    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(slots=True)
class ClassificationOutput:
    """A number for each label."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass(slots=True)
class ScoringOutput:
    """How well two texts fit."""

    score: float


T = TypeVar("T", PoolingOutput, EmbeddingOutput, ClassificationOutput, ScoringOutput)


@dataclass(slots=True)
class PoolingRequestOutput(Generic[T]):
    """One prompt with its answer."""

    request_id: str
    outputs: T
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


def request_outputs(
    first_id: int, prompts: list[Prompt], pooled: list[PooledOutput], outputs: list[T]
) -> list[PoolingRequestOutput[T]]:
    """From parallel lists; the ids count from `first_id`."""
    return [
        PoolingRequestOutput(str(first_id + i), output, prompt.token_ids, own.num_cached_tokens)
        for i, (prompt, own, output) in enumerate(zip(prompts, pooled, outputs, strict=True))
    ]

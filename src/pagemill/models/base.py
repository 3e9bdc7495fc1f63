"""What the runner asks of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from pagemill.attention.base import AttentionSpec, ForwardBatch
from pagemill.checkpoint.scaled import StoredWeight


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """The cache one layer needs: bytes follow from it and the block size."""

    num_kv_heads: int
    head_dim: int
    sliding_window: int = 0


class RunnableModel(Protocol):
    """What generation and pooling share."""

    vocab_size: int

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Hidden states after the final norm, [num_tokens, hidden]."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, StoredWeight]]) -> None:
        """Consume (Hugging Face name, tensor) pairs in any order.

        Raises ModelLoadError naming what is missing, unknown or of the wrong shape.
        """
        ...

    def finish_loading(self) -> None:
        """Every slot is filled: let the layers pack what they hold."""
        ...

    def attention_layers(self) -> list[AttentionSpec]: ...

    def kv_cache_specs(self) -> list[KVCacheSpec]:
        """Empty for a model that keeps nothing between steps."""
        ...


@runtime_checkable
class PooledModel(RunnableModel, Protocol):
    """A model that answers with vectors."""

    def classify(self, pooled: Tensor) -> Tensor:
        """[n, hidden] -> [n, labels], before any activation; an embedder returns its input."""
        ...


class Model(RunnableModel, Protocol):
    """A decoder. Files in `models/` implement it; `registry.py` finds them by architecture."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> float32 logits [rows, vocab]."""
        ...


AnyModel = Model | PooledModel

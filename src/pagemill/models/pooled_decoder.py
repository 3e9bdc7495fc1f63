"""A decoder whose hidden states are the answer, or go to a classifier instead of a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from pagemill.attention.base import AttentionSpec, ForwardBatch
from pagemill.checkpoint.scaled import StoredWeight
from pagemill.config.model import ModelConfig
from pagemill.layers.base import BuildContext
from pagemill.layers.linear import Linear
from pagemill.models.base import KVCacheSpec
from pagemill.models.causal_lm import CausalLM
from pagemill.models.weights import finish_loading, load_weights


class PooledDecoder(nn.Module):
    """Implements `PooledModel` with the layers of a generating model, whose head is dropped."""

    def __init__(self, generating: CausalLM, config: ModelConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.model = generating.model
        self._specs = generating.attention_layers()
        self._cache_specs = generating.kv_cache_specs()
        self.score: Linear | None = None
        if config.head == "classifier":
            self.score = Linear(ctx, config.hidden_size, len(config.labels))

    def forward(self, batch: ForwardBatch) -> Tensor:
        return self.model.forward(batch)

    def classify(self, pooled: Tensor) -> Tensor:
        return pooled if self.score is None else self.score.forward(pooled)

    def load_weights(self, weights: Iterable[tuple[str, StoredWeight]]) -> None:
        load_weights(self, _own(weights), frozenset())
        self.finish_loading()

    def finish_loading(self) -> None:
        """Every slot is filled: let the layers pack what they hold."""
        finish_loading(self)
        self.model.become_whole()

    def attention_layers(self) -> list[AttentionSpec]:
        return list(self._specs)

    def kv_cache_specs(self) -> list[KVCacheSpec]:
        return list(self._cache_specs)


def _own(weights: Iterable[tuple[str, StoredWeight]]) -> Iterator[tuple[str, StoredWeight]]:
    """Without a vocabulary's tensors; checkpoints of a bare model leave out the prefix."""
    for name, tensor in weights:
        if name.startswith("lm_head."):
            continue
        yield name if name.startswith(("model.", "score.")) else f"model.{name}", tensor

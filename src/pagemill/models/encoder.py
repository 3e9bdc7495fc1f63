"""BERT, RoBERTa and XLM-R (Devlin et al., 2018; Liu et al., 2019; Conneau et al., 2019).

Post-norm layers whose tokens see the whole text, learned positions, no cache. RoBERTa and XLM-R
differ in where positions begin and in the classifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from pagemill.attention.base import AttentionSpec, ForwardBatch
from pagemill.checkpoint.scaled import StoredWeight
from pagemill.config.model import EncoderConfig, ModelConfig
from pagemill.layers.activation import activation
from pagemill.layers.base import BuildContext
from pagemill.layers.embedding import Embedding
from pagemill.layers.linear import Linear, MergedLinear
from pagemill.layers.norm import LayerNorm
from pagemill.models.base import KVCacheSpec
from pagemill.models.weights import finish_loading, load_weights

# Names of the checkpoint that stand for shorter ones here, in this order.
_RENAMED = (
    ("LayerNorm.gamma", "LayerNorm.weight"),  # of checkpoints made by TensorFlow
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("LayerNorm", "norm"),
    ("attention.self.", "attention."),
    ("intermediate.dense.", "intermediate."),
)
_PREFIXES = ("bert.", "roberta.")
_IGNORED = ("embeddings.position_ids", "cls.", "lm_head.")
_HEADS = ("pooler.", "classifier.")


class EncoderEmbeddings(nn.Module):
    """Token, position and type, added and normalised: [T] -> [T, hidden]."""

    def __init__(self, config: ModelConfig, encoder: EncoderConfig, ctx: BuildContext) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = Embedding(ctx, config.vocab_size, size)
        self.position_embeddings = Embedding(ctx, encoder.num_positions, size)
        self.token_type_embeddings = Embedding(ctx, encoder.num_token_types, size)
        self.norm = LayerNorm(ctx, size, config.norm_eps)
        self._offset = encoder.position_offset
        self._num_types = encoder.num_token_types

    def forward(self, batch: ForwardBatch) -> Tensor:
        x = self.word_embeddings.forward(batch.input_ids)
        x.add_(self.position_embeddings.forward(batch.positions + self._offset))
        types = batch.token_types
        if types is None or self._num_types == 1:
            x.add_(self.token_type_embeddings.weight[0])
        else:
            x.add_(self.token_type_embeddings.forward(types))
        return self.norm.forward(x)


class DenseNorm(nn.Module):
    """`norm(dense(x) + residual)`."""

    def __init__(self, config: ModelConfig, ctx: BuildContext, in_features: int) -> None:
        super().__init__()
        self.dense = Linear(ctx, in_features, config.hidden_size, True)
        self.norm = LayerNorm(ctx, config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.norm.forward(self.dense.forward(x).add_(residual))


class EncoderAttention(nn.Module):
    """Every token sees every token of its row."""

    def __init__(self, config: ModelConfig, ctx: BuildContext, spec: AttentionSpec) -> None:
        super().__init__()
        parts = dict.fromkeys(("query", "key", "value"), config.hidden_size)
        self.qkv = MergedLinear(ctx, config.hidden_size, parts, True)
        self.output = DenseNorm(config, ctx, config.hidden_size)
        self._spec = spec

    def forward(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        assert batch.packed is not None, "encoders need attention without a cache"
        attended = batch.packed.run_packed(self._spec, self.qkv.forward(hidden), batch)
        return self.output.forward(attended, hidden)


class EncoderLayer(nn.Module):
    """Attention, then a feed-forward layer, each followed by addition and norm."""

    def __init__(self, config: ModelConfig, ctx: BuildContext, spec: AttentionSpec) -> None:
        super().__init__()
        self.attention = EncoderAttention(config, ctx, spec)
        self.intermediate = Linear(ctx, config.hidden_size, config.intermediate_size, True)
        self.output = DenseNorm(config, ctx, config.intermediate_size)
        self._activation = activation(config.activation)

    def forward(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        hidden = self.attention.forward(hidden, batch)
        return self.output.forward(self._activation(self.intermediate.forward(hidden)), hidden)


class LayerStack(nn.Module):
    """The layers, under the name that checkpoints give them."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class BertHead(nn.Module):
    """The pooler and the classifier: [n, hidden] -> [n, labels]."""

    def __init__(self, config: ModelConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.pooler = nn.ModuleDict({"dense": _square(config, ctx)})
        self.classifier = Linear(ctx, config.hidden_size, len(config.labels), True)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.classifier.forward(torch.tanh(self.pooler["dense"](pooled)))


class RobertaHead(nn.Module):
    """A classifier of two layers: [n, hidden] -> [n, labels]."""

    def __init__(self, config: ModelConfig, ctx: BuildContext) -> None:
        super().__init__()
        out = Linear(ctx, config.hidden_size, len(config.labels), True)
        self.classifier = nn.ModuleDict({"dense": _square(config, ctx), "out_proj": out})

    def forward(self, pooled: Tensor) -> Tensor:
        hidden = torch.tanh(self.classifier["dense"](pooled))
        logits: Tensor = self.classifier["out_proj"](hidden)
        return logits


class Encoder(nn.Module):
    """Implements `PooledModel`."""

    def __init__(self, config: ModelConfig, encoder: EncoderConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self._specs = [
            AttentionSpec(
                i, config.num_heads, config.num_heads, config.head_dim, config.head_dim**-0.5
            )
            for i in range(config.num_layers)
        ]
        self.embeddings = EncoderEmbeddings(config, encoder, ctx)
        self.encoder = LayerStack(EncoderLayer(config, ctx, spec) for spec in self._specs)
        self.head: nn.Module | None = None
        if config.head == "classifier":
            self.head = (RobertaHead if encoder.roberta_head else BertHead)(config, ctx)
        # Classifiers of the RoBERTa family may come with a pooler, and embedders with any head.
        parts = () if self.head is None else self.head.named_children()
        self._head_parts = tuple(f"head.{name}." for name, _ in parts)

    def forward(self, batch: ForwardBatch) -> Tensor:
        hidden = self.embeddings.forward(batch)
        for layer in self.encoder.layer:
            hidden = layer(hidden, batch)
        return hidden

    def classify(self, pooled: Tensor) -> Tensor:
        return pooled if self.head is None else self.head(pooled)

    def load_weights(self, weights: Iterable[tuple[str, StoredWeight]]) -> None:
        load_weights(self, self._own(weights), frozenset())
        self.finish_loading()

    def finish_loading(self) -> None:
        """Every slot is filled: let the layers pack what they hold."""
        finish_loading(self)

    def attention_layers(self) -> list[AttentionSpec]:
        return list(self._specs)

    def kv_cache_specs(self) -> list[KVCacheSpec]:
        return []

    def _own(
        self, weights: Iterable[tuple[str, StoredWeight]]
    ) -> Iterator[tuple[str, StoredWeight]]:
        """The tensors that this model has, under its names."""
        for name, tensor in weights:
            for prefix in _PREFIXES:
                name = name.removeprefix(prefix)
            for theirs, ours in _RENAMED:
                name = name.replace(theirs, ours)
            if name.startswith(_HEADS):
                name = f"head.{name}"
            unused = name.startswith("head.") and not name.startswith(self._head_parts)
            if not unused and not name.startswith(_IGNORED):
                yield name, tensor


def build(config: ModelConfig, ctx: BuildContext) -> Encoder:
    assert config.encoder is not None
    return Encoder(config, config.encoder, ctx)


def _square(config: ModelConfig, ctx: BuildContext) -> Linear:
    return Linear(ctx, config.hidden_size, config.hidden_size, True)

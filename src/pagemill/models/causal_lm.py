"""What all decoders here share: embedding, a stack of layers, final norm, vocabulary projection."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from pagemill.attention.base import AttentionSpec, ForwardBatch
from pagemill.checkpoint.scaled import StoredWeight
from pagemill.config.model import ModelConfig
from pagemill.layers.base import BuildContext
from pagemill.layers.embedding import Embedding, LMHead
from pagemill.layers.fusion import FusedLayer, fused_ops
from pagemill.layers.norm import RMSNorm
from pagemill.layers.rope import build_rope_tables
from pagemill.layers.whole import LayerStack, layer_stack
from pagemill.models.base import KVCacheSpec
from pagemill.models.weights import finish_loading, load_weights
from pagemill.ops.fused import FusedOps

# (config, context, the layer's attention, its rotary table) -> a module that is called with
# (hidden or None, residual, batch), adds hidden to the residual and returns the next hidden.
LayerBuilder = Callable[[ModelConfig, BuildContext, AttentionSpec, Tensor], nn.Module]


class Decoder(nn.Module):
    """Token ids to normalised hidden states. The residual is one tensor, updated in place."""

    def __init__(
        self,
        config: ModelConfig,
        ctx: BuildContext,
        specs: list[AttentionSpec],
        build_layer: LayerBuilder,
        *,
        embedding_scale: float,
        offset_one: bool,
    ) -> None:
        super().__init__()
        ropes = build_rope_tables(config, ctx.device)
        self.embed_tokens = Embedding(
            ctx,
            config.vocab_size,
            config.hidden_size,
            embedding_scale,
            tied=config.tie_embeddings,
        )
        self.layers = nn.ModuleList(
            build_layer(
                config,
                ctx.for_layer(spec.layer_index, len(specs)),
                spec,
                ropes.for_layer(spec.sliding_window),
            )
            for spec in specs
        )
        self.norm = RMSNorm(ctx, config.hidden_size, config.norm_eps, offset_one=offset_one)
        self._ctx = ctx
        self._stack: LayerStack | None = None
        self._fused = fused_ops(ctx)
        fusible = [x for x in self.layers if isinstance(x, FusedLayer) and x.fusible]
        self._fusible = fusible if len(fusible) == len(specs) else []

    def forward(self, batch: ForwardBatch) -> Tensor:
        residual = self.embed_tokens.forward(batch.input_ids)
        ops, (num_tokens, width) = self._fused, residual.shape
        if ops is not None and self._fusible and ops.fuses(num_tokens, width, residual.dtype):
            return self._forward_fused(ops, residual, batch)
        if self._stack is not None and self._stack.run(residual, batch):
            return self.norm.forward(residual)
        hidden = None
        for layer in self.layers:
            hidden = layer(hidden, residual, batch)
        return self.norm.after_add(hidden, residual)

    def become_whole(self) -> None:
        """All weights are there: let the layers run by one call, where there are kernels."""
        self._stack = layer_stack(self._ctx, self.layers)

    def _forward_fused(self, ops: FusedOps, residual: Tensor, batch: ForwardBatch) -> Tensor:
        norms = [*(layer.first_norm for layer in self._fusible), self.norm]
        stream = ops.begin_stream(residual, norms[0].weight)
        for layer, next_norm in zip(self._fusible, norms[1:], strict=True):
            layer.add_fused(stream, next_norm.weight, batch)
        return self.norm.forward(stream.values)


class CausalLM(nn.Module):
    """Implements `Model`; the files beside this one give it their layers."""

    def __init__(
        self,
        config: ModelConfig,
        ctx: BuildContext,
        build_layer: LayerBuilder,
        *,
        embedding_scale: float = 1.0,
        offset_one: bool = False,
    ) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self._tied = config.tie_embeddings
        self._specs = [_attention_spec(config, index) for index in range(config.num_layers)]
        self.model = Decoder(
            config,
            ctx,
            self._specs,
            build_layer,
            embedding_scale=embedding_scale,
            offset_one=offset_one,
        )
        self.lm_head = LMHead(
            ctx, config.vocab_size, config.hidden_size, self._tied, config.logit_soft_cap
        )

    def forward(self, batch: ForwardBatch) -> Tensor:
        return self.model.forward(batch)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head.forward(hidden)

    def load_weights(self, weights: Iterable[tuple[str, StoredWeight]]) -> None:
        # Some checkpoints store a tied head a second time.
        ignored = frozenset({"lm_head.weight"}) if self._tied else frozenset()
        load_weights(self, weights, ignored)
        self.finish_loading()

    def finish_loading(self) -> None:
        """Every slot is filled: let the layers pack what they hold."""
        finish_loading(self)
        if self._tied:
            self.lm_head.tie(self.model.embed_tokens)
        self.model.become_whole()

    def attention_layers(self) -> list[AttentionSpec]:
        return list(self._specs)

    def kv_cache_specs(self) -> list[KVCacheSpec]:
        return [KVCacheSpec(s.num_kv_heads, s.head_dim, s.sliding_window) for s in self._specs]


def _attention_spec(config: ModelConfig, index: int) -> AttentionSpec:
    return AttentionSpec(
        layer_index=index,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        scale=config.attention_scale,
        sliding_window=config.layer_window(index),
        soft_cap=config.attention_soft_cap,
    )

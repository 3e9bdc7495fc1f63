"""The attention layer: projections, per-head norms, rotation, paged attention."""

from __future__ import annotations

from torch import Tensor, nn

from pagemill.attention.base import AttentionSpec, ForwardBatch
from pagemill.config.model import ModelConfig
from pagemill.layers.base import BuildContext
from pagemill.layers.linear import Linear, QKVLinear
from pagemill.layers.norm import RMSNorm
from pagemill.ops.base import HeadShape


class Attention(nn.Module):
    """Causal self-attention, [T, hidden] -> [T, hidden].

    `cos_sin` is the rotary table of this layer's kind. With `qk_norm`, queries and keys are
    normalised per head before they are rotated.
    """

    def __init__(
        self,
        config: ModelConfig,
        ctx: BuildContext,
        spec: AttentionSpec,
        cos_sin: Tensor,
        *,
        qk_norm: bool = False,
        offset_one: bool = False,
    ) -> None:
        super().__init__()
        shape = HeadShape(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        self.qkv_proj = QKVLinear(ctx, config.hidden_size, shape, config.attention_bias)
        self.o_proj = Linear(ctx, shape.q_size, config.hidden_size, config.output_bias)
        self._ops = ctx.ops
        self._spec = spec
        self._shape = shape
        self._cos_sin = cos_sin
        self._eps = config.norm_eps
        self._norms: tuple[Tensor | None, Tensor | None] = (None, None)
        if qk_norm:
            self.q_norm = RMSNorm(ctx, spec.head_dim, config.norm_eps, offset_one=offset_one)
            self.k_norm = RMSNorm(ctx, spec.head_dim, config.norm_eps, offset_one=offset_one)
            self._norms = (self.q_norm.weight, self.k_norm.weight)

    def forward(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        assert batch.attention is not None
        cache = batch.kv_cache[self._spec.layer_index]
        q = self._ops.qk_norm_rope_cache(
            self.qkv_proj.forward(hidden),
            batch.positions,
            batch.slot_mapping,
            self._cos_sin,
            self._shape,
            cache.k,
            cache.v,
            *self._norms,
            self._eps,
        )
        return self.o_proj.forward(batch.attention.run(self._spec, q, batch))

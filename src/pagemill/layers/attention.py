"""The attention layer: projections, per-head norms, rotation, paged attention."""

from __future__ import annotations

from torch import Tensor, nn

from pagemill.attention.base import AttentionSpec, ForwardBatch, FusedAttention, RopeInput
from pagemill.config.model import ModelConfig
from pagemill.layers.base import BuildContext
from pagemill.layers.fusion import fused_ops, plain_weight
from pagemill.layers.linear import Linear, QKVLinear
from pagemill.layers.norm import RMSNorm
from pagemill.ops.base import HeadShape
from pagemill.ops.fused import FusedOps, Stream


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
        self.spec = spec
        self.shape = shape
        q_norm, k_norm = None, None
        if qk_norm:
            self.q_norm = RMSNorm(ctx, spec.head_dim, config.norm_eps, offset_one=offset_one)
            self.k_norm = RMSNorm(ctx, spec.head_dim, config.norm_eps, offset_one=offset_one)
            q_norm, k_norm = self.q_norm.weight, self.k_norm.weight
        self._fused = fused_ops(ctx)
        self._ropes_in_attention = isinstance(ctx.ops, FusedOps)
        self.rope = RopeInput(cos_sin, q_norm, k_norm, config.norm_eps)

    def forward(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        return self.o_proj.forward(self._attend(self.qkv_proj.forward(hidden), batch))

    def add_fused(self, stream: Stream, next_norm: Tensor, batch: ForwardBatch) -> None:
        """`stream += forward(norm(stream))`, in place, by three kernels."""
        assert self._fused is not None
        weight, bias = plain_weight(self.qkv_proj)
        qkv = self._fused.norm_linear(stream, self.rope.eps, weight, bias)
        attended = self._attend(qkv, batch)
        self._fused.linear_add(attended, *plain_weight(self.o_proj), stream, next_norm)

    def _attend(self, qkv: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, q_size + 2 kv_size] -> [T, q_size]; keys and values go to the cache."""
        batch = batch.of_layer(self.spec.layer_index)
        assert batch.attention is not None
        may_fuse = self._ropes_in_attention and batch.max_query_len == 1
        if may_fuse and isinstance(batch.attention, FusedAttention):
            return batch.attention.run_with_rope(self.spec, qkv, batch, self.rope)
        cache = batch.kv_cache[self.spec.layer_index]
        q = self._ops.qk_norm_rope_cache(
            qkv,
            batch.positions,
            batch.slot_mapping,
            self.rope.cos_sin,
            self.shape,
            cache.k,
            cache.v,
            self.rope.q_norm,
            self.rope.k_norm,
            self.rope.eps,
        )
        return batch.attention.run(self.spec, q, batch)

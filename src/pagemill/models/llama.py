"""Llama 2 and 3, SmolLM2, Mistral, Qwen2: pre-norm decoders that differ in their numbers only.

Mistral's windows and Qwen2's biases are in the config; Qwen3 adds norms of queries and keys.
"""

from __future__ import annotations

from torch import Tensor, nn

from pagemill.attention.base import AttentionSpec, ForwardBatch
from pagemill.config.model import ModelConfig
from pagemill.layers.attention import Attention
from pagemill.layers.base import BuildContext
from pagemill.layers.mlp import GatedMLP
from pagemill.layers.norm import RMSNorm
from pagemill.layers.whole import layer_parts
from pagemill.models.causal_lm import CausalLM
from pagemill.ops.fused import LayerParts, Stream


class LlamaLayer(nn.Module):
    """Norm, attention, norm, gated MLP."""

    def __init__(
        self,
        config: ModelConfig,
        ctx: BuildContext,
        spec: AttentionSpec,
        cos_sin: Tensor,
        *,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(ctx, config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, ctx, spec, cos_sin, qk_norm=qk_norm)
        self.post_attention_layernorm = RMSNorm(ctx, config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(config, ctx)
        self._ctx = ctx

    def parts(self) -> LayerParts | None:
        return layer_parts(
            self._ctx, self.self_attn, self.mlp, self.input_layernorm, self.post_attention_layernorm
        )

    @property
    def first_norm(self) -> RMSNorm:
        return self.input_layernorm

    @property
    def fusible(self) -> bool:
        return self.mlp.fusible

    def forward(self, hidden: Tensor | None, residual: Tensor, batch: ForwardBatch) -> Tensor:
        hidden = self.input_layernorm.after_add(hidden, residual)
        hidden = self.self_attn.forward(hidden, batch)
        hidden = self.post_attention_layernorm.after_add(hidden, residual)
        return self.mlp.forward(hidden)

    def add_fused(self, stream: Stream, next_norm: Tensor, batch: ForwardBatch) -> None:
        """`forward` and the addition of what it returns."""
        self.self_attn.add_fused(stream, self.post_attention_layernorm.weight, batch)
        self.mlp.add_fused(stream, next_norm)


def build(config: ModelConfig, ctx: BuildContext) -> CausalLM:
    return CausalLM(config, ctx, LlamaLayer)

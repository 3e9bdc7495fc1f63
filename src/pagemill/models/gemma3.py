"""Gemma 3, text only: norms on both sides of each sublayer, two rotary tables, scaled embedding.

Checkpoints store norm weights minus one. Sliding-window layers rotate by `local_rope`.
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
from pagemill.ops.fused import LayerParts


class Gemma3Layer(nn.Module):
    """Norm, attention, norm; norm, gated MLP, norm."""

    def __init__(
        self, config: ModelConfig, ctx: BuildContext, spec: AttentionSpec, cos_sin: Tensor
    ) -> None:
        super().__init__()
        self.input_layernorm = _norm(config, ctx)
        self.self_attn = Attention(config, ctx, spec, cos_sin, qk_norm=True, offset_one=True)
        self.post_attention_layernorm = _norm(config, ctx)
        self.pre_feedforward_layernorm = _norm(config, ctx)
        self.mlp = GatedMLP(config, ctx)
        self.post_feedforward_layernorm = _norm(config, ctx)
        self._ctx = ctx

    def parts(self) -> LayerParts | None:
        return layer_parts(
            self._ctx,
            self.self_attn,
            self.mlp,
            self.input_layernorm,
            self.pre_feedforward_layernorm,
            after_attention=self.post_attention_layernorm,
            after_mlp=self.post_feedforward_layernorm,
        )

    def forward(self, hidden: Tensor | None, residual: Tensor, batch: ForwardBatch) -> Tensor:
        hidden = self.input_layernorm.after_add(hidden, residual)
        hidden = self.self_attn.forward(hidden, batch)
        hidden = self.post_attention_layernorm.forward(hidden)
        hidden = self.pre_feedforward_layernorm.after_add(hidden, residual)
        hidden = self.mlp.forward(hidden)
        return self.post_feedforward_layernorm.forward(hidden)


def build(config: ModelConfig, ctx: BuildContext) -> CausalLM:
    scale = config.hidden_size**0.5
    return CausalLM(config, ctx, Gemma3Layer, embedding_scale=scale, offset_one=True)


def _norm(config: ModelConfig, ctx: BuildContext) -> RMSNorm:
    return RMSNorm(ctx, config.hidden_size, config.norm_eps, offset_one=True)

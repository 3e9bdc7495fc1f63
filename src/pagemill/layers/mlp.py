"""The gated feed-forward layer (Shazeer, 2020: "GLU variants improve transformer")."""

from __future__ import annotations

from torch import Tensor, nn

from pagemill.config.model import ModelConfig
from pagemill.layers.activation import gated_activation
from pagemill.layers.base import BuildContext
from pagemill.layers.fusion import fused_ops, plain_weight
from pagemill.layers.linear import GateUpLinear, Linear
from pagemill.layers.norm import RMSNorm

_FUSED_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), [T, hidden] -> [T, hidden]."""

    def __init__(self, config: ModelConfig, ctx: BuildContext) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.intermediate_size
        self.gate_up_proj = GateUpLinear(ctx, hidden, size, config.mlp_bias)
        self.down_proj = Linear(ctx, size, hidden, config.mlp_bias)
        self._activation = gated_activation(config.activation, ctx.ops)
        self.fused_activation = _FUSED_ACTIVATIONS[config.activation]
        self._fused = None if config.mlp_bias else fused_ops(ctx)
        self._hidden_size = hidden

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj.forward(self._activation(self.gate_up_proj.forward(x)))

    def fuses(self, num_tokens: int) -> bool:
        """Whether `add_fused` can take the place of the norm before, `forward` and the addition."""
        return self._fused is not None and self._fused.fuses(num_tokens, self._hidden_size)

    def add_fused(self, norm: RMSNorm, residual: Tensor) -> None:
        """`residual += forward(norm(residual))`, in place, by two kernels."""
        assert self._fused is not None
        weight, _ = plain_weight(self.gate_up_proj)
        activation = self.fused_activation
        x = self._fused.norm_gate_up(residual, norm.weight, norm.eps, weight, activation)
        self._fused.linear_add(x, *plain_weight(self.down_proj), residual)

"""The gated feed-forward layer (Shazeer, 2020: "GLU variants improve transformer")."""

from __future__ import annotations

from torch import Tensor, nn

from pagemill.config.model import ModelConfig
from pagemill.layers.activation import gated_activation
from pagemill.layers.base import BuildContext
from pagemill.layers.linear import GateUpLinear, Linear


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), [T, hidden] -> [T, hidden]."""

    def __init__(self, config: ModelConfig, ctx: BuildContext) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.intermediate_size
        self.gate_up_proj = GateUpLinear(ctx, hidden, size, config.mlp_bias)
        self.down_proj = Linear(ctx, size, hidden, config.mlp_bias)
        self._activation = gated_activation(config.activation, ctx.ops)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj.forward(self._activation(self.gate_up_proj.forward(x)))

"""The gated feed-forward layer (Shazeer, 2020: "GLU variants improve transformer")."""

from __future__ import annotations

from torch import Tensor, nn

from pagemill.config.model import ModelConfig
from pagemill.layers.activation import gated_activation
from pagemill.layers.base import BuildContext
from pagemill.layers.fusion import fused_ops, plain_weight
from pagemill.layers.linear import GateUpLinear, Linear
from pagemill.ops.fused import Stream

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
        self._eps = config.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj.forward(self._activation(self.gate_up_proj.forward(x)))

    @property
    def fusible(self) -> bool:
        """Whether `add_fused` may be called, for steps that the fused kernels take."""
        return self._fused is not None

    def add_fused(self, stream: Stream, next_norm: Tensor) -> None:
        """`stream += forward(norm(stream))`, in place, by two kernels."""
        assert self._fused is not None
        weight, _ = plain_weight(self.gate_up_proj)
        x = self._fused.norm_gate_up(stream, self._eps, weight, self.fused_activation)
        self._fused.linear_add(x, *plain_weight(self.down_proj), stream, next_norm)

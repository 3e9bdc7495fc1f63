"""Float8 (e4m3) weights with scales of rows or of 128 inputs, and float8 activations."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pagemill.checkpoint.scaled import ScaledWeight
from pagemill.ops.base import Ops
from pagemill.ops.fp8 import FP8_MAX, GROUP, Fp8Ops, group_size
from pagemill.quant.base import QuantMethod
from pagemill.quant.unquantized import Unquantized

_LEAST_SCALE = 1e-12
_ROWS_AT_ONCE = 8192  # bounds the float32 copies


class Fp8:
    """Implements `QuantMethod`. Plain weights are rounded as they are loaded, float8 ones kept.

    `grouped` is for checkpoints with blocks: a scale for each 128 inputs instead of one a row.
    `every_layer` rounds the first and the last layer too, whose rounding costs the most.
    """

    name = "fp8"
    keeps_groups = False

    def __init__(
        self, ops: Ops, fp8_ops: Fp8Ops, *, grouped: bool = False, every_layer: bool = False
    ) -> None:
        self.head: QuantMethod = Unquantized(ops)  # checkpoints leave it as it is, too
        self.ends: QuantMethod = self if every_layer else self.head
        self._linear = fp8_ops.fp8_linear
        self._grouped = grouped

    def create(
        self,
        layer: nn.Module,
        out_features: int,
        in_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        groups = -(-in_features // GROUP) if self._grouped else 1
        weight = torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn, device=device)
        layer.register_buffer("weight", weight)
        layer.register_buffer("scale", torch.empty(out_features, groups, device=device))
        zeros = torch.zeros(out_features, dtype=dtype, device=device) if bias else None
        layer.register_parameter(
            "bias", None if zeros is None else nn.Parameter(zeros, requires_grad=False)
        )

    def load(self, layer: nn.Module, tensor: Tensor, row: int) -> None:
        weight, scale = _tensors(layer)
        for first in range(0, len(tensor), _ROWS_AT_ONCE):
            rows = tensor[first : first + _ROWS_AT_ONCE].to(weight.device)
            at = slice(row + first, row + first + len(rows))
            weight[at], scale[at] = quantize(rows, scale.shape[1])

    def load_scaled(self, layer: nn.Module, stored: ScaledWeight, row: int) -> None:
        """Keep the checkpoint's numbers; rounds anew only where its groups are of another size."""
        weight, scale = _tensors(layer)
        if stored.scale.shape[1] not in (1, scale.shape[1]):
            self.load(layer, stored.dequantize(), row)
            return
        at = slice(row, row + stored.shape[0])
        weight[at] = stored.values.to(weight.device)
        scale[at] = stored.scale.to(scale.device)

    def finish_loading(self, layer: nn.Module) -> None:
        """The weights are used in the layout they are stored in."""

    def tie(self, layer: nn.Module, weight: nn.Parameter) -> None:
        self.head.tie(layer, weight)

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        return self._linear(x, *_tensors(layer), cast("Tensor | None", layer.bias))


def quantize(rows: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """[n, in] -> float8_e4m3fn and its scales [n, groups] float32."""
    size = group_size(rows.shape[1], groups)
    padded = nn.functional.pad(rows.float(), (0, groups * size - rows.shape[1]))
    parts = padded.view(len(rows), groups, size)
    scale = (parts.abs().amax(dim=2) / FP8_MAX).clamp_(min=_LEAST_SCALE)
    values = (parts / scale.unsqueeze(2)).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return values.flatten(1)[:, : rows.shape[1]].contiguous(), scale


def _tensors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return cast(Tensor, layer.weight), cast(Tensor, layer.scale)

"""Bfloat16 weights in the layout of the CPU's own kernels, which round activations alike.

What is between the products is float32, and so are their sums.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pagemill.ops.cpu.matrix import MatrixProducts, PackedMatrix, empty_matrix, store_rows
from pagemill.ops.cpu.memory import WeightMemory
from pagemill.quant.base import QuantMethod


class PackedHalf:
    """Implements `QuantMethod`, `HoldsMatrices` and `HoldsTables`: packed as it is loaded."""

    name = "bfloat16"
    keeps_groups = False
    activations = torch.float32
    exact = True

    def __init__(self, products: MatrixProducts) -> None:
        self.head: QuantMethod = self
        self.ends: QuantMethod = self
        self._products = products
        self._memory = WeightMemory()

    def create(
        self,
        layer: nn.Module,
        out_features: int,
        in_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        layer.register_parameter("bias", None)
        if bias:
            zeros = torch.zeros(out_features, dtype=torch.float32, device=device)
            layer.register_parameter("bias", nn.Parameter(zeros, requires_grad=False))
        if device.type != "meta":
            bias_held = cast("Tensor | None", layer.bias)
            matrix = empty_matrix(out_features, in_features, bias_held, self._memory)
            object.__setattr__(layer, "held", matrix)  # neither a parameter nor a buffer

    def load(self, layer: nn.Module, tensor: Tensor, row: int) -> None:
        store_rows(self.matrix(layer), tensor, row)

    def finish_loading(self, layer: nn.Module) -> None:
        """The weights were packed as they came."""

    def tie(self, layer: nn.Module, table: nn.Module) -> None:
        object.__setattr__(layer, "held", self.matrix(table))

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        return self._products.linear(x, self.matrix(layer))

    def matrix(self, layer: nn.Module) -> PackedMatrix:
        return cast(PackedMatrix, layer.held)

    def create_table(
        self, layer: nn.Module, rows: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.create(layer, rows, width, False, dtype, device)

    def load_table(self, layer: nn.Module, tensor: Tensor) -> None:
        self.load(layer, tensor, 0)

    def look_up(self, layer: nn.Module, ids: Tensor) -> Tensor:
        return self._products.look_up(ids, self.matrix(layer))

"""Results of a row that do not depend on which rows it is computed with, bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pagemill.ops.base import HeadShape, Ops

# Libraries choose their kernel, and with it the order of a sum, by the shape of a product; within
# one product of a given shape all rows are summed alike. So every product has this many rows.
_TILE_ROWS = {"cpu": 8, "cuda": 64}


class DeterministicOps:
    """Implements `Ops` around another, without its fused kernels, which serve certain shapes only.

    Products are made in tiles of a fixed number of rows, the last one padded. On a CPU, functions
    of single numbers are computed row by row: torch takes other code for the end of a vector than
    for its middle, and where that end lies depends on the rows before.
    """

    def __init__(self, inner: Ops, device_type: str) -> None:
        self.name = f"{inner.name}, deterministic"
        self._inner = inner
        self._tile_rows = _TILE_ROWS[device_type]
        self._row_by_row = device_type == "cpu"

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._inner.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._inner.add_rms_norm(x, residual, weight, eps)

    def silu_mul(self, x: Tensor) -> Tensor:
        return self._by_row(self._inner.silu_mul, x)

    def gelu_tanh_mul(self, x: Tensor) -> Tensor:
        return self._by_row(self._inner.gelu_tanh_mul, x)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return self._by_row(lambda row: self._inner.soft_cap(row, cap), x)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.shape[0]
        padded = F.pad(x, (0, 0, 0, -rows % self._tile_rows))
        tiles = torch.split(padded, self._tile_rows)
        return torch.cat([F.linear(tile, weight, bias) for tile in tiles])[:rows]

    def qk_norm_rope_cache(
        self,
        qkv: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        cos_sin: Tensor,
        shape: HeadShape,
        k_cache: Tensor,
        v_cache: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor:
        return self._inner.qk_norm_rope_cache(
            qkv, positions, slot_mapping, cos_sin, shape, k_cache, v_cache, q_norm, k_norm, eps
        )

    def _by_row(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if not self._row_by_row or x.shape[0] <= 1:
            return function(x)
        return torch.cat([function(row) for row in torch.split(x, 1)])

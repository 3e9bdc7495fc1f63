"""Matrices in 4 or 8 bits, or in bfloat16, as the native kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagemill.ops.cpu import _native
from pagemill.ops.cpu.memory import WeightMemory
from pagemill.ops.cpu.types import address, float_address, type_code

GROUP = 32  # inputs that share a scale; kGroup of native/kernels.h
_HALF_BITS = 16


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """[out, in] in tiles; `native` holds the addresses of the others.

    `packed` is uint8 as in native/group_linear.h, or bfloat16 as in native/half_linear.h.
    """

    native: _native.Matrix
    packed: Tensor
    bias: Tensor | None
    shape: tuple[int, int]


def pack_matrix(
    codes: Tensor,  # [out, groups * 32]: uint8 0 to 15 in 4 bits, int8 in 8 bits
    scales: Tensor,  # float16 [out, groups]
    offsets: Tensor | None,  # float16 [out, groups]
    bias: Tensor | None,  # float32 [out]
    *,
    bits: int,
    in_features: int,
    memory: WeightMemory,
    coarse: bool = False,
) -> PackedMatrix:
    """A weight is scale * code + offset; 4-bit codes without offsets stand for code - 8.

    With `coarse` products of many rows may be computed in coarser codes (native/coarse_linear.h),
    so that a row's result depends on how many rows there are.
    """
    out_features, padded = codes.shape
    assert padded == -(-in_features // GROUP) * GROUP and codes.element_size() == 1
    assert scales.dtype == torch.float16 and scales.shape == (out_features, padded // GROUP)
    assert offsets is None or (offsets.dtype, offsets.shape) == (scales.dtype, scales.shape)

    def native(packed: int) -> _native.Matrix:
        has_offsets = offsets is not None
        bias_at = float_address(bias)
        return _native.Matrix(packed, bias_at, in_features, out_features, bits, has_offsets, coarse)

    packed = memory.zeros(native(0).packed_bytes())
    matrix = native(packed.data_ptr())
    _native.pack(matrix, address(codes), address(scales), address(offsets), packed.data_ptr())
    return PackedMatrix(matrix, packed, bias, (out_features, in_features))


def empty_matrix(
    out_features: int, in_features: int, bias: Tensor | None, memory: WeightMemory
) -> PackedMatrix:
    """Zeros in bfloat16, for `store_rows` to fill; bias float32 [out]."""

    def native(packed: int) -> _native.Matrix:
        bias_at = float_address(bias)
        return _native.Matrix(packed, bias_at, in_features, out_features, _HALF_BITS, False, False)

    packed = memory.zeros(native(0).packed_bytes()).view(torch.bfloat16)
    return PackedMatrix(native(packed.data_ptr()), packed, bias, (out_features, in_features))


def store_rows(matrix: PackedMatrix, rows: Tensor, first: int) -> None:
    """Write [n, in] of any floating type over a bfloat16 matrix's rows, from `first` on."""
    out_features, in_features = matrix.shape
    assert matrix.packed.dtype == torch.bfloat16 and rows.shape[1] == in_features
    assert 0 <= first <= out_features - len(rows)
    rows = rows.to(torch.bfloat16).contiguous()
    _native.pack_half(matrix.native, address(rows), first, len(rows), matrix.packed.data_ptr())


class MatrixProducts:
    """Products with packed matrices, all with one working memory: not for several threads."""

    def __init__(self) -> None:
        self.workspace = _native.Workspace()

    def linear(self, x: Tensor, matrix: PackedMatrix) -> Tensor:
        """[T, in] -> [T, out] of x's type, bias included."""
        out_features, in_features = matrix.shape
        assert x.shape[1] == in_features
        out = torch.empty(x.shape[0], out_features, dtype=x.dtype)
        _native.group_linear(
            type_code(x), address(x), out.data_ptr(), x.shape[0], matrix.native, self.workspace
        )
        return out

    def look_up(self, ids: Tensor, matrix: PackedMatrix) -> Tensor:
        """Rows of a matrix, [T] int64 -> float32 [T, in]. Raises IndexError for rows beyond it."""
        assert ids.dtype == torch.int64
        out = torch.empty(ids.shape[0], matrix.shape[1], dtype=torch.float32)
        _native.look_up(matrix.native, address(ids), ids.shape[0], out.data_ptr())
        return out

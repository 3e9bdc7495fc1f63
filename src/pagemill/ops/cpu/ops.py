"""`Ops` in C++ for CPUs. Matrix products stay with torch; see quant/ for the int8 ones.

The native module takes addresses, so every call here checks what the kernels rely on: type,
contiguity and device. It shares torch's OpenMP threads, hence torch is imported before it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from pagemill.ops.base import HeadShape
from pagemill.ops.cpu import _native

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_SILU, _GELU_TANH = 0, 1
MAX_HEAD_DIM = 256
_TILE_CHANNELS = 16  # of native/int8_linear.h


def type_code(x: Tensor) -> int:
    """The native code of a tensor's type. Raises TypeError for types without kernels."""
    code = _TYPES.get(x.dtype)
    if code is None:
        raise TypeError(f"the CPU kernels take float32 and bfloat16, not {x.dtype}")
    return code


def address(x: Tensor | None) -> int:
    """The address of a contiguous tensor, 0 for None."""
    if x is None:
        return 0
    assert x.is_contiguous()
    return x.data_ptr()


def pack_int8(weight: Tensor) -> Tensor:
    """int8 [out, in] -> the layout of `int8_linear`: tiles of 16 channels by pairs of inputs."""
    out_features, in_features = weight.shape
    padded = pad(weight, (0, in_features % 2, 0, -out_features % _TILE_CHANNELS))
    tiles = padded.view(-1, _TILE_CHANNELS, padded.shape[1] // 2, 2)
    return tiles.permute(0, 2, 1, 3).contiguous()


def int8_linear(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """[T, in] times int8 weights from `pack_int8` with float32 scales [out] -> [T, out]."""
    rows, in_features = x.shape
    assert packed.shape[1] == (in_features + 1) // 2 and scale.dtype == torch.float32
    assert bias is None or bias.dtype == torch.float32
    out = torch.empty(rows, len(scale), dtype=x.dtype)
    _native.int8_linear(
        type_code(x),
        address(x),
        address(packed),
        address(scale),
        address(bias),
        out.data_ptr(),
        rows,
        in_features,
        len(scale),
    )
    return out


class CpuOps:
    """Implements `Ops`; float32 and bfloat16."""

    name = "cpu"

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._norm(x, None, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._norm(x, residual, weight, eps)

    def _norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        rows, size = x.shape
        assert weight.dtype == torch.float32 and weight.numel() == size and x.stride(1) == 1
        out = torch.empty(rows, size, dtype=x.dtype)
        _native.rms_norm(
            type_code(x),
            x.data_ptr(),
            address(residual),
            address(weight),
            out.data_ptr(),
            rows,
            size,
            x.stride(0),
            eps,
        )
        return out

    def silu_mul(self, x: Tensor) -> Tensor:
        return self._gate(x, _SILU)

    def gelu_tanh_mul(self, x: Tensor) -> Tensor:
        return self._gate(x, _GELU_TANH)

    def _gate(self, x: Tensor, kind: int) -> Tensor:
        rows, size = x.shape[0], x.shape[1] // 2
        out = torch.empty(rows, size, dtype=x.dtype)
        _native.gate_mul(type_code(x), address(x), out.data_ptr(), rows, size, kind)
        return out

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)

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
        tokens = qkv.shape[0]
        assert positions.dtype == slot_mapping.dtype == torch.int64
        assert cos_sin.dtype == torch.float32 and k_cache.dtype == qkv.dtype
        q = torch.empty(tokens, shape.num_heads, shape.head_dim, dtype=qkv.dtype)
        _native.rope_cache(
            type_code(qkv),
            address(qkv),
            q.data_ptr(),
            address(k_cache),
            address(v_cache),
            address(positions),
            address(slot_mapping),
            address(cos_sin),
            address(q_norm),
            address(k_norm),
            tokens,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            k_cache.shape[2],
            eps,
        )
        return q

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return torch.tanh(x / cap) * cap

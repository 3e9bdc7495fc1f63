"""`Ops` in C++ for CPUs. Products with plain weights stay with torch; see matrix.py for the others.

The native module shares torch's OpenMP threads, hence torch is imported before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from pagemill.ops.base import HeadShape
from pagemill.ops.cpu import _native, sampling
from pagemill.ops.cpu.decode import SlotLookUp
from pagemill.ops.cpu.layer import NativeLayers, can_be_whole
from pagemill.ops.cpu.matrix import MatrixProducts
from pagemill.ops.cpu.types import (
    address,
    attention_shape,
    cache_pages,
    float_address,
    type_code,
)
from pagemill.ops.decode import DecodeInputs, DecodeState
from pagemill.ops.fused import LayerParts, WholeLayers
from pagemill.ops.sampling import Filters, SamplingRows, SlotSampling

_SILU, _GELU_TANH = 0, 1


class CpuOps:
    """Implements `Ops`, `LayerOps`, `DecodeOps` and `SamplingOps`; float32 and bfloat16."""

    name = "cpu"

    def __init__(self) -> None:
        self.products = MatrixProducts()
        self._slots = SlotLookUp()

    def whole_layers(self, layers: Sequence[LayerParts]) -> WholeLayers | None:
        if not all(can_be_whole(parts) for parts in layers):
            return None
        return NativeLayers(layers, self.products.workspace)

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
        q = torch.empty(tokens, shape.num_heads, shape.head_dim, dtype=qkv.dtype)
        step = _native.Step(address(positions), address(slot_mapping), 0, 0, 0, 0, tokens, 0)
        _native.rope_cache(
            type_code(qkv),
            address(qkv),
            q.data_ptr(),
            attention_shape(shape.num_heads, shape.num_kv_heads, shape.head_dim),
            step,
            cache_pages(k_cache, v_cache, shape.head_dim, qkv.dtype),
            _native.Rope(float_address(cos_sin), float_address(q_norm), float_address(k_norm), eps),
        )
        return q

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return torch.tanh(x / cap) * cap

    def argmax(self, logits: Tensor) -> Tensor:
        """The first greatest entry of each row of logits [n, V] -> [n] int64."""
        return sampling.argmax(logits)

    def sampling_rows(self, slots: Tensor, index: Tensor, state: SlotSampling) -> SamplingRows:
        return sampling.sampling_rows(slots, index, state)

    def sample(self, logits: Tensor, rows: SamplingRows, filters: Filters) -> Tensor:
        return sampling.sample(logits, rows, self.products.workspace)

    def decode_inputs(
        self,
        slots: Tensor,
        state: DecodeState,
        block_size: int,
        into: DecodeInputs | None = None,
    ) -> DecodeInputs:
        return self._slots.inputs(slots, state, block_size, into)

    def decode_advance(
        self, slots: Tensor, state: DecodeState, tokens: Tensor, out: Tensor
    ) -> None:
        self._slots.advance(slots, state, tokens, out)

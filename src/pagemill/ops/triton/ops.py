"""`Ops`, `FusedOps`, `PackedOps`, `SamplingOps` and `Fp8Ops` by Triton; big products by cuBLAS."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pagemill.ops.base import HeadShape
from pagemill.ops.decode import DecodeInputs, DecodeState
from pagemill.ops.fused import Stream
from pagemill.ops.packed import PackedInputs, PackedRows
from pagemill.ops.sampling import Filters, SamplingRows, SlotSampling
from pagemill.ops.triton import (
    activation,
    decode_step,
    norm,
    packed_step,
    rope,
    sampling,
    sampling_rows,
)
from pagemill.ops.triton.batch_linear import (
    batch_linear,
    batch_linear_add,
    begin_stream,
    norm_batch_linear,
)
from pagemill.ops.triton.counters import Counters
from pagemill.ops.triton.fp8_linear import fp8_linear
from pagemill.ops.triton.vector_linear import MAX_WIDTH, norm_vector_linear, vector_linear

# With more tokens cuBLAS is faster, even with a kernel for every operation around it.
FEW_TOKENS = 16
# A product alone of several tokens: cuBLAS streams larger weights at the device's bandwidth.
PLAIN_MAX_ELEMENTS = 16 * 1024 * 1024
MIN_TILE = 256  # elements of the smallest tile, each of which needs a counter


class TritonOps:
    """Implements `Ops`, `FusedOps`, `DecodeOps`, `PackedOps`, `SamplingOps` and `Fp8Ops`."""

    name = "triton"

    def __init__(self) -> None:
        self._counters = Counters()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.add_rms_norm(x, residual, weight, eps)

    def silu_mul(self, x: Tensor) -> Tensor:
        return activation.silu_mul(x)

    def gelu_tanh_mul(self, x: Tensor) -> Tensor:
        return activation.gelu_tanh_mul(x)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return activation.soft_cap(x, cap)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[T, in] @ [out, in]^T -> [T, out]; own kernels where they beat cuBLAS."""
        num_tokens = x.shape[0] if x.dim() == 2 else 0
        fits = 1 <= num_tokens <= FEW_TOKENS and x.stride(-1) == 1
        if not fits or not weight.is_contiguous():
            return F.linear(x, weight, bias)
        if num_tokens == 1:
            return vector_linear(x, weight, bias)
        # Four stages of float32 tiles are more than the shared memory of any device.
        if weight.numel() > PLAIN_MAX_ELEMENTS or x.element_size() > 2:
            return F.linear(x, weight, bias)
        return batch_linear(x, weight, bias, self._tile_counters(x, weight))

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
        return rope.qk_norm_rope_cache(
            qkv, positions, slot_mapping, cos_sin, shape, k_cache, v_cache, q_norm, k_norm, eps
        )

    def fp8_linear(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        return fp8_linear(x, weight, scale, bias)

    def fuses(self, num_tokens: int, in_features: int, dtype: torch.dtype) -> bool:
        if num_tokens == 1:
            return in_features <= MAX_WIDTH
        # Float16 might overflow before the norm's scale is applied, float32 is not worth kernels.
        return dtype == torch.bfloat16 and 1 < num_tokens <= FEW_TOKENS

    def begin_stream(self, values: Tensor, norm: Tensor) -> Stream:
        return Stream(values, norm) if len(values) == 1 else begin_stream(values, norm)

    def norm_linear(
        self, stream: Stream, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        if stream.squares is None:
            return norm_vector_linear(stream.values, stream.norm, eps, weight, bias)
        counters = self._tile_counters(stream.values, weight)
        return norm_batch_linear(stream, eps, weight, bias, None, counters)

    def norm_gate_up(self, stream: Stream, eps: float, weight: Tensor, activation: str) -> Tensor:
        if stream.squares is None:
            values, norm = stream.values, stream.norm
            return norm_vector_linear(values, norm, eps, weight, activation=activation)
        counters = self._tile_counters(stream.values, weight)
        return norm_batch_linear(stream, eps, weight, None, activation, counters)

    def linear_add(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stream: Stream, next_norm: Tensor
    ) -> None:
        if stream.squares is None:
            vector_linear(x, weight, bias, add_to=stream.values)
            stream.norm = next_norm
        else:
            counters = self._tile_counters(x, weight)
            batch_linear_add(x, weight, bias, stream, next_norm, counters)

    def _tile_counters(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._counters.get(x.device, len(x) * len(weight) // MIN_TILE + len(weight))

    def argmax(self, logits: Tensor) -> Tensor:
        """The first greatest entry of each row of logits [n, V] -> [n] int64."""
        return sampling.argmax(logits)

    def sampling_rows(self, slots: Tensor, index: Tensor, state: SlotSampling) -> SamplingRows:
        return sampling_rows.sampling_rows(slots, index, state)

    def sample(self, logits: Tensor, rows: SamplingRows, filters: Filters) -> Tensor:
        counters = self._counters.get(logits.device, logits.shape[0])
        return sampling.sample(logits, rows, filters, counters)

    def decode_inputs(
        self,
        slots: Tensor,
        state: DecodeState,
        block_size: int,
        into: DecodeInputs | None = None,
    ) -> DecodeInputs:
        return decode_step.decode_inputs(slots, state, block_size)

    def decode_advance(
        self, slots: Tensor, state: DecodeState, tokens: Tensor, out: Tensor
    ) -> None:
        decode_step.decode_advance(slots, state, tokens, out)

    def packed_inputs(self, rows: PackedRows, state: DecodeState, block_size: int) -> PackedInputs:
        return packed_step.packed_inputs(rows, state, block_size)

    def packed_advance(
        self, rows: PackedRows, state: DecodeState, tokens: Tensor, out: Tensor
    ) -> None:
        packed_step.packed_advance(rows, state, tokens, out)

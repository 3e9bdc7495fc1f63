"""The kernels that layers call. `reference.py` is the specification; others must match it.

One `Ops` is chosen per device when the model is built and handed to every layer, so the runner
and the models have no branch on the device. Shapes: T tokens of the step, H hidden size, D head
size. Norm weights are float32 whatever the model's type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadShape:
    """How a fused qkv row is divided: `num_heads` query heads, then k, then v heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


class Ops(Protocol):
    """Device kernels. All run on the current stream and allocate their outputs."""

    name: str

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm over the last dimension, in float32; [T, H] -> [T, H] of x's type."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`residual += x` in place, then RMSNorm of it."""
        ...

    def silu_mul(self, x: Tensor) -> Tensor:
        """[T, 2 I] -> [T, I]: silu of the first half times the second."""
        ...

    def gelu_tanh_mul(self, x: Tensor) -> Tensor:
        """[T, 2 I] -> [T, I]: tanh-approximated GELU of the first half times the second."""
        ...

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[T, in] @ [out, in]^T -> [T, out]."""
        ...

    def qk_norm_rope_cache(
        self,
        qkv: Tensor,  # [T, q_size + 2 kv_size]
        positions: Tensor,  # [T] int64
        slot_mapping: Tensor,  # [T] int64: block * block_size + offset, -1: do not write
        cos_sin: Tensor,  # [max_position, D] float32: cos of D/2 frequencies, then sin
        shape: HeadShape,
        k_cache: Tensor,  # [num_blocks, num_kv_heads, block_size, D]; int8: see int8_cache.py
        v_cache: Tensor,  # as k_cache
        q_norm: Tensor | None,  # [D] float32
        k_norm: Tensor | None,  # [D] float32
        eps: float,
    ) -> Tensor:
        """Norm q and k per head, rotate both (neox halves), write k and v to the cache.

        Returns q, [T, num_heads, D], in qkv's type.
        """
        ...

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """`cap * tanh(x / cap)`."""
        ...

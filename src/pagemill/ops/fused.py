"""Fusions that a device may offer beyond `Ops`, for steps of few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(slots=True)
class Stream:
    """The residual stream, updated in place, and what the norm that reads it next needs.

    `scaled` and `squares` may be missing where a reader computes them itself.
    """

    values: Tensor  # [T, width]
    norm: Tensor  # [width] float32, the weights of that norm
    scaled: Tensor | None = None  # [T, width]: values * norm
    squares: Tensor | None = None  # [parts, T] float32: sums of squares; together the whole rows


@runtime_checkable
class FusedOps(Protocol):
    """Linear layers with their neighbours in one kernel. Weights are plain [out, in] matrices.

    A decoder layer is `norm_linear` of the stream, attention, `linear_add`, `norm_gate_up` of the
    stream, `linear_add`; each addition names the norm that comes next.
    """

    def fuses(self, num_tokens: int, in_features: int, dtype: torch.dtype) -> bool:
        """Whether the methods below take inputs of this size; they are faster where they do."""
        ...

    def begin_stream(self, values: Tensor, norm: Tensor) -> Stream:
        """The stream of values [T, width], contiguous, which later methods change in place."""
        ...

    def norm_linear(
        self, stream: Stream, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """RMSNorm of the stream [T, in] times weight^T, plus bias -> [T, out]."""
        ...

    def norm_gate_up(self, stream: Stream, eps: float, weight: Tensor, activation: str) -> Tensor:
        """RMSNorm of the stream, gate and up products ([2 I, in]: gate first), act(gate) * up.

        Returns [T, I]; `activation` is "silu" or "gelu_tanh".
        """
        ...

    def linear_add(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stream: Stream, next_norm: Tensor
    ) -> None:
        """`stream += x @ weight^T + bias`, in place; `in` has no limit."""
        ...

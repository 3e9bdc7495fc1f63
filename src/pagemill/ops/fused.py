"""Fusions that a device may offer beyond `Ops`, for steps of very few tokens."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class FusedOps(Protocol):
    """Linear layers with their neighbours in one kernel. Weights are plain [out, in] matrices.

    With these a decoder layer keeps the residual stream up to date itself: `norm_linear` of the
    residual, attention, `linear_add`, `norm_gate_up` of the residual, `linear_add`.
    """

    def fuses(self, num_tokens: int, in_features: int) -> bool:
        """Whether the methods below take inputs of this size; they are faster where they do."""
        ...

    def norm_linear(
        self, x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """RMSNorm of x [T, in] times weight^T, plus bias -> [T, out]."""
        ...

    def norm_gate_up(
        self, x: Tensor, norm: Tensor, eps: float, weight: Tensor, activation: str
    ) -> Tensor:
        """RMSNorm of x, gate and up products ([2 I, in]: gate first), act(gate) * up -> [T, I].

        `activation` is "silu" or "gelu_tanh".
        """
        ...

    def linear_add(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> None:
        """`residual += x @ weight^T + bias`, in place; residual [T, out]. `in` has no limit."""
        ...

"""Products of float8 (e4m3) weights and activations."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

FP8_MAX = 448.0  # the greatest e4m3 number; there is no infinity
GROUP = 128  # inputs that share a scale, where a row has several


@runtime_checkable
class Fp8Ops(Protocol):
    """Activations are rounded to float8 on the fly, with a scale per token and group of inputs."""

    def fp8_linear(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """[T, in] @ (weight * scale)^T + bias -> [T, out], in x's type.

        weight [out, in] float8_e4m3fn; scale [out, groups] float32, one group for a whole row or
        one for each `GROUP` inputs.
        """
        ...


def group_size(in_features: int, groups: int) -> int:
    """How many inputs share a scale."""
    return in_features if groups == 1 else GROUP

"""Fusions that a device may offer beyond `Ops`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pagemill.attention.base import LayerCache, RopeInput
from pagemill.ops.base import HeadShape


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
    """Linear layers with their neighbours in one kernel, for steps of very few tokens. Weights
    are plain [out, in] matrices.

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


@dataclass(frozen=True, slots=True)
class LayerParts:
    """A pre-norm decoder layer. Norm weights are float32 [hidden]; matrices as the device's
    quantisation holds them. The norms behind attention and MLP are Gemma's.
    """

    qkv: Any
    o: Any
    gate_up: Any
    down: Any
    input_norm: Tensor
    mlp_norm: Tensor
    eps: float
    activation: str  # "silu" or "gelu_tanh"
    shape: HeadShape
    rope: RopeInput
    scale: float
    soft_cap: float
    window: int
    after_attention: Tensor | None = None
    after_mlp: Tensor | None = None


class WholeLayers(Protocol):
    """Decoder layers that follow each other, in one call."""

    def takes(self, residual: Tensor, plans: Sequence[Any]) -> bool:
        """Whether `run` can compute a step with these attention plans, one a layer."""
        ...

    def run(self, residual: Tensor, caches: Sequence[LayerCache], plans: Sequence[Any]) -> None:
        """Add what the layers compute to the residual [T, hidden], in place."""
        ...


@runtime_checkable
class LayerOps(Protocol):
    """A device with whole decoder layers."""

    def whole_layers(self, layers: Sequence[LayerParts]) -> WholeLayers | None:
        """Layers made of these parts, or None where they have to be computed part by part."""
        ...

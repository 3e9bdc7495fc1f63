"""Drawing tokens on the device: what a sampler may ask for beyond torch's operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, slots=True)
class SlotSampling:
    """How each slot samples; float32 [slots] with one stride, but for the seeds."""

    temperature: Tensor  # 0: greedy
    top_k: Tensor  # 0, or the size of the vocabulary: off
    top_p: Tensor  # 1: off
    min_p: Tensor  # 0: off
    seeds: Tensor  # int64 [slots]


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """The same for the rows of a step, contiguous, with a random number for each."""

    temperature: Tensor  # [n] float32
    top_k: Tensor  # [n] float32 or int32
    top_p: Tensor  # [n] float32
    min_p: Tensor  # [n] float32
    uniform: Tensor  # [n] float32 or float64 in [0, 1]


@dataclass(frozen=True, slots=True)
class Filters:
    """What at least one row of a step uses; the host knows."""

    top_k: bool = False
    top_p: bool = False
    min_p: bool = False

    def __bool__(self) -> bool:
        return self.top_k or self.top_p or self.min_p


class DrawingOps(Protocol):
    """Kernels that read logits [n, V] of any floating type as they are, and never wait."""

    def argmax(self, logits: Tensor) -> Tensor:
        """The first greatest entry of each row -> [n] int64."""
        ...

    def sample(self, logits: Tensor, rows: SamplingRows, filters: Filters) -> Tensor:
        """One token per row -> [n] int64; greedy where the temperature is 0.

        Temperature, then min-p, top-k and top-p in that order, each on what the one before left.
        Tokens that tie with the last one kept are kept. `filters` may name more than the rows use:
        what is off for a row does not change its token.
        """
        ...


@runtime_checkable
class SamplingOps(DrawingOps, Protocol):
    """And those that find what each row of a step asks for."""

    def sampling_rows(self, slots: Tensor, index: Tensor, state: SlotSampling) -> SamplingRows:
        """Look up `slots` [n] int64; `index` [n] int64 is the place of the token to be drawn."""
        ...

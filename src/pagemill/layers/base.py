"""What every layer is built with, and what it expects of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from pagemill.checkpoint.scaled import ScaledWeight
from pagemill.ops.base import Ops
from pagemill.quant.base import QuantMethod


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Handed down while a model is built: no global device, type or kernel choice."""

    device: torch.device
    dtype: torch.dtype
    ops: Ops
    quant: QuantMethod

    def for_layer(self, index: int, num_layers: int) -> BuildContext:
        """What layer `index` of a stack is built with."""
        is_end = index in (0, num_layers - 1)
        return replace(self, quant=self.quant.ends) if is_end else self


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """The place of one checkpoint tensor in a layer.

    Its checkpoint name is the layer's own path and `kind`; a layer that merges several matrices
    names each in `part`, which replaces the last component of the path.
    """

    kind: str  # "weight" | "bias"
    shape: tuple[int, ...]
    store: Callable[[Any], None]  # a `Weight`; a plain tensor where it is not multiplied by
    part: str = ""
    store_scaled: Callable[[ScaledWeight], None] | None = None  # None: wants plain weights


@runtime_checkable
class HoldsWeights(Protocol):
    """A layer with tensors of its own."""

    def weight_slots(self) -> Iterator[WeightSlot]: ...

    def finish_loading(self) -> None:
        """Called once, when every slot is filled."""
        ...

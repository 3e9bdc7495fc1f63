"""How the weights of a linear layer are held and multiplied."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pagemill.checkpoint.scaled import ScaledWeight


class QuantMethod(Protocol):
    """One way to hold a weight matrix. A layer keeps its tensors; the method is stateless."""

    name: str
    head: QuantMethod  # how the projection to the vocabulary is held
    ends: QuantMethod  # how the first and the last layer are held
    keeps_groups: bool  # takes weights as GGUF files hold them

    def create(
        self,
        layer: nn.Module,
        out_features: int,
        in_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Give the layer its (empty) parameters; `bias` is one of them, or None."""
        ...

    def load(self, layer: nn.Module, tensor: Any, row: int) -> None:
        """Store `tensor` [rows, in] at output row `row`; called once per checkpoint tensor.

        It is a plain tensor, or with `keeps_groups` possibly a `GroupedWeight`.
        """
        ...

    def finish_loading(self, layer: nn.Module) -> None:
        """Pack the weights into the layout that `apply` wants."""
        ...

    def tie(self, layer: nn.Module, weight: nn.Parameter) -> None:
        """Multiply by an embedding table [out, in] that is already loaded.

        Takes the place of `create`, `load` and `finish_loading`. Methods that do not change the
        weights share the table; others make their packed copy.
        """
        ...

    def apply(self, layer: nn.Module, x: Tensor) -> Tensor:
        """[T, in] -> [T, out], bias included."""
        ...


@runtime_checkable
class HoldsMatrices(Protocol):
    """A method whose packed matrices other kernels than its own can multiply by."""

    def matrix(self, layer: nn.Module) -> Any:
        """The layer's matrix, once it is loaded."""
        ...


@runtime_checkable
class TakesScales(Protocol):
    """A method that can hold a checkpoint's float8 weights as they are."""

    def load_scaled(self, layer: nn.Module, stored: ScaledWeight, row: int) -> None:
        """Store them at output row `row`."""
        ...

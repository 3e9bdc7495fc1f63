"""Linear layers. Matrices that are applied to the same input are merged into one product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import accumulate

from torch import Tensor, nn

from pagemill.layers.base import BuildContext, WeightSlot
from pagemill.ops.base import HeadShape
from pagemill.quant.base import TakesScales


class MergedLinear(nn.Module):
    """[T, in] -> [T, sum of the parts' rows]; each part is a matrix of the checkpoint.

    `parts` maps the checkpoint's module names to output rows, in the order of the output.
    """

    def __init__(
        self, ctx: BuildContext, in_features: int, parts: Mapping[str, int], bias: bool
    ) -> None:
        super().__init__()
        self._quant = ctx.quant
        self._in_features = in_features
        self._parts = dict(parts)
        self._has_bias = bias
        rows = sum(parts.values())
        ctx.quant.create(self, rows, in_features, bias, ctx.dtype, ctx.device)

    def forward(self, x: Tensor) -> Tensor:
        return self._quant.apply(self, x)

    def weight_slots(self) -> Iterator[WeightSlot]:
        starts = accumulate(self._parts.values(), initial=0)
        for (part, rows), start in zip(self._parts.items(), starts, strict=False):
            store, scaled = partial(self._store_weight, row=start), None
            if isinstance(self._quant, TakesScales):
                scaled = partial(self._quant.load_scaled, self, row=start)
            yield WeightSlot("weight", (rows, self._in_features), store, part, scaled)
            if self._has_bias:
                yield WeightSlot("bias", (rows,), partial(self._store_bias, row=start), part)

    def finish_loading(self) -> None:
        self._quant.finish_loading(self)

    def _store_weight(self, tensor: Tensor, row: int) -> None:
        self._quant.load(self, tensor, row)

    def _store_bias(self, tensor: Tensor, row: int) -> None:
        self.get_parameter("bias")[row : row + len(tensor)].copy_(tensor)


class Linear(MergedLinear):
    """One matrix, under the layer's own name."""

    def __init__(
        self, ctx: BuildContext, in_features: int, out_features: int, bias: bool = False
    ) -> None:
        super().__init__(ctx, in_features, {"": out_features}, bias)


class QKVLinear(MergedLinear):
    """q_proj, k_proj and v_proj."""

    def __init__(self, ctx: BuildContext, in_features: int, shape: HeadShape, bias: bool) -> None:
        parts = {"q_proj": shape.q_size, "k_proj": shape.kv_size, "v_proj": shape.kv_size}
        super().__init__(ctx, in_features, parts, bias)


class GateUpLinear(MergedLinear):
    """gate_proj and up_proj."""

    def __init__(self, ctx: BuildContext, in_features: int, size: int, bias: bool) -> None:
        super().__init__(ctx, in_features, {"gate_proj": size, "up_proj": size}, bias)

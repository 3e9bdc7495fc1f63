"""The embedding table and the projection to the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pagemill.layers.base import BuildContext, WeightSlot


class Embedding(nn.Module):
    """Token ids [T] -> [T, hidden], times `scale` rounded to the model's type."""

    weight: nn.Parameter

    def __init__(
        self, ctx: BuildContext, vocab_size: int, hidden_size: int, scale: float = 1.0
    ) -> None:
        super().__init__()
        weight = torch.empty(vocab_size, hidden_size, dtype=ctx.dtype, device=ctx.device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self._scale = float(torch.tensor(scale, dtype=ctx.dtype))

    def forward(self, input_ids: Tensor) -> Tensor:
        rows = F.embedding(input_ids, self.weight)
        return rows if self._scale == 1.0 else rows.mul_(self._scale)

    def weight_slots(self) -> Iterator[WeightSlot]:
        yield WeightSlot("weight", tuple(self.weight.shape), self._store)

    def finish_loading(self) -> None:
        """The table is used in the layout it is stored in."""

    def _store(self, tensor: Tensor) -> None:
        self.weight.copy_(tensor)


class LMHead(nn.Module):
    """[rows, hidden] -> logits [rows, vocab], in float32 and soft-capped if `soft_cap` is not 0.

    A tied head has no tensors of its own: `tie` gives it the embedding's once they are loaded.
    """

    def __init__(
        self, ctx: BuildContext, vocab_size: int, hidden_size: int, tied: bool, soft_cap: float
    ) -> None:
        super().__init__()
        self._ops = ctx.ops
        self._quant = ctx.quant.head
        self._shape = (vocab_size, hidden_size)
        self._tied = tied
        self._soft_cap = soft_cap
        if not tied:
            self._quant.create(self, vocab_size, hidden_size, False, ctx.dtype, ctx.device)

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self._quant.apply(self, hidden)
        return self._ops.soft_cap(logits.float(), self._soft_cap) if self._soft_cap else logits

    def tie(self, weight: nn.Parameter) -> None:
        self._quant.tie(self, weight)

    def weight_slots(self) -> Iterator[WeightSlot]:
        if not self._tied:
            yield WeightSlot("weight", self._shape, partial(self._quant.load, self, row=0))

    def finish_loading(self) -> None:
        if not self._tied:
            self._quant.finish_loading(self)

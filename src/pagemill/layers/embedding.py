"""The embedding table and the projection to the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pagemill.layers.base import BuildContext, WeightSlot
from pagemill.quant.base import HoldsTables


class Embedding(nn.Module):
    """Token ids [T] -> [T, hidden], times `scale` rounded to the model's type.

    Where the table is packed, for a `tied` head to multiply by or without loss, it is looked up in
    there; else it is the parameter `weight`.
    """

    def __init__(
        self,
        ctx: BuildContext,
        vocab_size: int,
        hidden_size: int,
        scale: float = 1.0,
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self._shape = (vocab_size, hidden_size)
        self._scale = float(torch.tensor(scale, dtype=ctx.dtype))
        self._tables: HoldsTables | None = None
        tables = ctx.quant.head
        if isinstance(tables, HoldsTables) and (tied or tables.exact):
            tables.create_table(self, *self._shape, ctx.dtype, ctx.device)
            self._tables = tables
        else:
            weight = torch.empty(self._shape, dtype=ctx.dtype, device=ctx.device)
            self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        if self._tables is not None:
            rows = self._tables.look_up(self, input_ids)
        else:
            rows = F.embedding(input_ids, self.weight)
        return rows if self._scale == 1.0 else rows.mul_(self._scale)

    def weight_slots(self) -> Iterator[WeightSlot]:
        yield WeightSlot("weight", self._shape, self._store)

    def finish_loading(self) -> None:
        """The table was stored in the layout it is used in."""

    def _store(self, tensor: Tensor) -> None:
        if self._tables is not None:
            self._tables.load_table(self, tensor)
        else:
            self.weight.copy_(tensor)


class LMHead(nn.Module):
    """[rows, hidden] -> logits [rows, vocab], in float32 and soft-capped if `soft_cap` is not 0.

    A tied head has no tensors of its own: `tie` gives it the embedding's once these are loaded.
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

    def tie(self, embedding: Embedding) -> None:
        self._quant.tie(self, embedding)

    def weight_slots(self) -> Iterator[WeightSlot]:
        if not self._tied:
            yield WeightSlot("weight", self._shape, partial(self._quant.load, self, row=0))

    def finish_loading(self) -> None:
        if not self._tied:
            self._quant.finish_loading(self)

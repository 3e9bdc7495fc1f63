"""`thinking_token_budget`: after so many tokens of reasoning, the token that ends it."""

from __future__ import annotations

import torch
from torch import Tensor

from pagemill.device.base import Device
from pagemill.params import ThinkingTokens
from pagemill.sampling.base import SUPPRESSED, AcceptedTokens, LogitRows
from pagemill.scheduler.batch import Admission

_NO_TOKEN = -1
_NEVER = 1 << 40  # a place that no text reaches


class ThinkingBudget:
    """Implements `LogitsProcessor`. Knows for each slot where its reasoning began and ended."""

    def __init__(self, num_slots: int, device: Device) -> None:
        def column(value: int) -> Tensor:
            return torch.full((num_slots,), value, dtype=torch.int64, device=device.torch_device)

        self._budget = column(0)
        self._open = column(_NO_TOKEN)
        self._close = column(_NO_TOKEN)
        self._begin = column(_NEVER)  # the place of the first token of reasoning
        self._end = column(_NEVER)  # the place of the token that closed it

    def add(self, admission: Admission) -> bool:
        budget, marks = admission.params.thinking_token_budget, admission.params.thinking
        if budget is None or marks is None:
            return False
        slot, prompt_len = admission.slot, admission.prompt_len
        begin, end = _find(admission.token_ids[prompt_len:].tolist(), marks)
        self._budget[slot] = budget
        self._open[slot] = _NO_TOKEN if marks.in_prompt else marks.open_id
        self._close[slot] = marks.close_id
        self._begin[slot] = _NEVER if begin is None else prompt_len + begin
        self._end[slot] = _NEVER if end is None else prompt_len + end
        return True

    def remove(self, slot: int) -> None:
        """`observe` also sees the rows of those that do not use the feature."""
        self._open[slot] = self._close[slot] = _NO_TOKEN

    def apply(self, logits: Tensor, rows: LogitRows) -> None:
        begin, end = self._begin[rows.slots], self._end[rows.slots]
        if rows.drafts is not None and rows.num_preceding is not None:
            first = rows.index - rows.num_preceding
            begin, end = self._advance(rows.slots, rows.drafts, rows.num_preceding, first)
        is_due = (rows.index - begin >= self._budget[rows.slots]) & (end == _NEVER)  # [L]
        close = self._close[rows.slots].unsqueeze(1)
        wanted = logits.gather(1, close)
        logits.add_(is_due.unsqueeze(1) * SUPPRESSED)
        logits.scatter_(1, close, wanted)

    def observe(self, accepted: AcceptedTokens) -> None:
        slots = accepted.slots
        self._begin[slots], self._end[slots] = self._advance(
            slots, accepted.tokens, accepted.num_tokens, accepted.index
        )

    def _advance(
        self, slots: Tensor, tokens: Tensor, num_tokens: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`begin` and `end` [n] after `tokens[i, :num_tokens[i]]` from place `index[i]` on."""
        column = torch.arange(tokens.shape[1], device=tokens.device)
        place = index.unsqueeze(1) + column  # [n, k]
        known = column < num_tokens.unsqueeze(1)

        def first(found: Tensor) -> Tensor:
            return torch.where(found, place, _NEVER).amin(dim=1)

        opened = first(known & (tokens == self._open[slots].unsqueeze(1))) + 1
        begin = torch.minimum(self._begin[slots], opened)
        closes = known & (tokens == self._close[slots].unsqueeze(1))
        closed = first(closes & (place >= begin.unsqueeze(1)))
        return begin, torch.minimum(self._end[slots], closed)


def _find(output: list[int], marks: ThinkingTokens) -> tuple[int | None, int | None]:
    """Where in the output reasoning begins, and where the token is that ends it."""
    begin = 0
    if not marks.in_prompt:
        if marks.open_id not in output:
            return None, None
        begin = output.index(marks.open_id) + 1
    if marks.close_id not in output[begin:]:
        return begin, None
    return begin, output.index(marks.close_id, begin)

"""Presence, frequency and repetition penalties, with vLLM's meaning.

Repetition (Keskar et al., "CTRL", 2019, section 4.1) divides positive and multiplies negative
logits of tokens that are in the prompt or the output; presence and frequency subtract from the
logits of tokens of the output, once and per occurrence.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pagemill.device.base import Device
from pagemill.sampling.base import AcceptedTokens, LogitRows
from pagemill.sampling.state import Column, SamplingState
from pagemill.scheduler.batch import Admission

_FIRST_ROWS = 8


class Penalties:
    """Implements `LogitsProcessor`.

    Token counts take much memory, so only slots that use penalties have a row of them; row 0
    takes the counts of all others and is never read.
    """

    def __init__(
        self, num_slots: int, vocab_size: int, device: Device, state: SamplingState
    ) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._state = state
        self.host_row = np.zeros(num_slots, np.int64)
        self._row = torch.zeros(num_slots, dtype=torch.int64, device=device.torch_device)
        self._free: list[int] = []
        self._in_prompt = self._table(0, torch.bool)  # [rows, vocab]
        self._num_output = self._table(0, torch.int32)  # [rows, vocab]

    def add(self, admission: Admission) -> bool:
        if not admission.params.has_penalties:
            return False
        if not self._free:
            self._grow()
        row = self._free.pop()
        self.host_row[admission.slot] = row
        self._row[admission.slot] = row
        self._count_known(row, admission)
        return True

    def remove(self, slot: int) -> None:
        self._free.append(int(self.host_row[slot]))
        self.host_row[slot] = 0
        self._row[slot] = 0

    def apply(self, logits: Tensor, rows: LogitRows) -> None:
        table_rows = self._row[rows.slots]
        num_output = self._num_output[table_rows]
        if rows.drafts is not None and rows.num_preceding is not None:
            place = torch.arange(rows.drafts.shape[1], device=logits.device)
            precedes = place < rows.num_preceding.unsqueeze(1)
            num_output.scatter_add_(1, rows.drafts, precedes.to(num_output.dtype))
        columns = self._state.columns[rows.slots]
        in_output = num_output > 0
        repetition = columns[:, Column.REPETITION, None]
        factor = torch.where(logits > 0, 1 / repetition, repetition)
        is_known = self._in_prompt[table_rows] | in_output
        logits.copy_(torch.where(is_known, logits * factor, logits))
        logits.sub_(columns[:, Column.FREQUENCY, None] * num_output)
        logits.sub_(torch.where(in_output, columns[:, Column.PRESENCE, None], 0.0))

    def observe(self, accepted: AcceptedTokens) -> None:
        offset = torch.arange(accepted.tokens.shape[1], device=self._row.device)
        is_kept = offset < accepted.num_tokens.unsqueeze(1)
        cell = self._row[accepted.slots].unsqueeze(1) * self._vocab_size + accepted.tokens
        ones = is_kept.to(self._num_output.dtype)
        self._num_output.view(-1).scatter_add_(0, cell.flatten(), ones.flatten())

    def _count_known(self, row: int, admission: Admission) -> None:
        """Start with the prompt, and with what was generated before a preemption."""
        token_ids = self._device.from_numpy(admission.token_ids.astype(np.int64))
        prompt, output = token_ids[: admission.prompt_len], token_ids[admission.prompt_len :]
        self._in_prompt[row].zero_().index_fill_(0, prompt, True)
        ones = torch.ones_like(output, dtype=self._num_output.dtype)
        self._num_output[row].zero_().scatter_add_(0, output, ones)

    def _grow(self) -> None:
        old = len(self._in_prompt)
        self._free = list(range(max(old, 1), max(2 * old, _FIRST_ROWS)))
        for name in ("_in_prompt", "_num_output"):
            table = getattr(self, name)
            larger = self._table(max(2 * old, _FIRST_ROWS), table.dtype)
            larger[:old] = table
            setattr(self, name, larger)

    def _table(self, num_rows: int, dtype: torch.dtype) -> Tensor:
        shape, device = (num_rows, self._vocab_size), self._device.torch_device
        return torch.zeros(shape, dtype=dtype, device=device)

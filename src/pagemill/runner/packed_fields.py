"""The rows of a captured step with prompts: one array of fixed layout, on the host and the device.

A graph reads its inputs where they were when it was captured, so they are copied to the same place
for every step, in one piece.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.ops.packed import PackedRows
from pagemill.runner.inputs import BatchLayout, known_tokens
from pagemill.scheduler.batch import Batch

FIELD = "packed_rows"
_ALIGNMENT = 16  # numbers: kernels are compiled for pointers of one alignment


class PackedFields:
    """Room for `max_rows` rows and `max_tokens` tokens; `spare` is the slot of padding."""

    def __init__(self, max_rows: int, max_tokens: int, spare: int, device: torch.device) -> None:
        self._spare = spare
        counts = (max_rows, max_rows + 1, max_rows, max_tokens, max_tokens)
        aligned = [-(-count // _ALIGNMENT) * _ALIGNMENT for count in counts]
        *starts, total = accumulate(aligned, initial=0)
        self._parts = [slice(a, a + count) for a, count in zip(starts, counts, strict=True)]
        self._host = np.zeros(total, np.int32)
        self._on_device = torch.zeros(total, dtype=torch.int32, device=device)

    def pack(self, batch: Batch, layout: BatchLayout) -> dict[str, NDArray[Any]]:
        """What `update` needs on the device; valid until the next call."""
        n, num_tokens = batch.num_rows, batch.num_tokens
        slots, query_start, samples, token_rows, known = (self._host[part] for part in self._parts)
        assert n <= len(slots) and num_tokens <= len(known), "the step is larger than any graph"
        slots[:n], slots[n:] = layout.slots, self._spare
        query_start[: n + 1], query_start[n + 1 :] = layout.query_start, num_tokens
        samples[:n], samples[n:] = batch.samples, 0
        token_rows[:num_tokens] = np.repeat(np.arange(n, dtype=np.int32), batch.num_query)
        token_rows[num_tokens:] = -1
        known[:num_tokens], known[num_tokens:] = known_tokens(batch), -1
        return {FIELD: self._host}

    def update(self, fields: dict[str, Tensor]) -> None:
        """Take in the rows of the next replay."""
        self._on_device.copy_(fields[FIELD])

    def clear(self) -> None:
        """Nothing but padding: a step that may run at any time."""
        slots, query_start, samples, token_rows, known = self._views()
        slots.fill_(self._spare)
        query_start.zero_()
        samples.zero_()
        token_rows.fill_(-1)
        known.fill_(-1)

    def rows(self, num_rows: int, num_tokens: int) -> PackedRows:
        """The first ones, where they always are on the device."""
        slots, query_start, samples, token_rows, known = self._views()
        return PackedRows(
            slots[:num_rows],
            query_start[: num_rows + 1],
            samples[:num_rows],
            token_rows[:num_tokens],
            known[:num_tokens],
        )

    def _views(self) -> list[Tensor]:
        return [self._on_device[part] for part in self._parts]

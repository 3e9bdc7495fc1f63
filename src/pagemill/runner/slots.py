"""What the device remembers of each resident request between steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.sampling.state import SamplingState
from pagemill.scheduler.batch import Batch


class SlotState:
    """Device tensors with a row per slot, and one more row that padding may write to.

    `next_input` holds the last sampled token and the drafts after it; `length` counts the tokens
    in the cache and is the only truth about positions, as the host may not yet know how many
    drafts were accepted.
    """

    def __init__(
        self,
        num_slots: int,
        max_blocks: int,
        max_drafts: int,
        vocab_size: int,
        device: torch.device,
        num_tables: int = 1,
    ) -> None:
        rows = num_slots + 1
        self.scratch = num_slots
        self.length = torch.zeros(rows, dtype=torch.int64, device=device)
        self.next_input = torch.zeros(rows, 1 + max_drafts, dtype=torch.int64, device=device)
        shape = num_tables, rows, max_blocks
        self.block_tables = torch.zeros(shape, dtype=torch.int32, device=device)
        self.sampling = SamplingState(rows, vocab_size, device)

    @property
    def block_table(self) -> Tensor:
        """The first table [rows, max_blocks], which most models have alone."""
        return self.block_tables[0]

    def pack(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """What `update` needs on the device: nothing in most steps."""
        fields: dict[str, NDArray[Any]] = {}
        admitted = batch.admitted
        if admitted:
            fields["admitted_slots"] = np.array([a.slot for a in admitted], np.int64)
            fields["admitted_length"] = np.array([a.num_computed for a in admitted], np.int64)
            fields |= self.sampling.pack(admitted)
        new = batch.new_blocks
        if not admitted and not len(new.slots):
            return fields
        num_tables, num_rows, width = self.block_tables.shape
        cells = [new.slots.astype(np.int64) * width + new.index]
        cells += [np.arange(len(a.block_ids), dtype=np.int64) + a.slot * width for a in admitted]
        block_ids = [new.block_ids, *(a.block_ids for a in admitted)]
        if sum(map(len, cells)):
            tables = np.arange(num_tables, dtype=np.int64) * (num_rows * width)
            fields["table_cells"] = (np.concatenate(cells)[:, None] + tables).ravel()
            values = np.concatenate([ids.ravel() for ids in block_ids])
            fields["table_values"] = values.astype(np.int32, copy=False)
        return fields

    def update(self, fields: dict[str, Tensor]) -> None:
        """Take in the step's new requests and blocks."""
        if "admitted_slots" in fields:
            slots = fields["admitted_slots"]
            self.length[slots] = fields["admitted_length"]
            self.sampling.admit(slots, fields)
        if "table_cells" in fields:
            self.block_tables.view(-1)[fields["table_cells"]] = fields["table_values"]

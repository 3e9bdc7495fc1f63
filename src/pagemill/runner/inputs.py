"""From a scheduled batch to the tensors of its forward pass.

Everything that depends on what the device has produced (positions, the tokens of resident rows) is
computed on the device; the host contributes what it decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.attention.base import ForwardBatch
from pagemill.runner.slots import SlotState
from pagemill.sampling.base import LogitRows
from pagemill.scheduler.batch import Batch

Int64 = NDArray[np.int64]


@dataclass(slots=True)
class BatchLayout:
    """Where the rows of a batch and their logits are in the packed tokens; host arrays.

    A batch is uniform when every row is resident, samples, and has the same number of drafts:
    then everything follows from the slots, and shapes depend on `num_rows` and `num_query` only.
    """

    slots: Int64  # [n]
    query_start: NDArray[np.int32]  # [n + 1]
    max_drafts: int
    uniform: bool
    logit_row: Int64  # [L] the row of the batch
    logit_offset: Int64  # [L] how many drafts of the row come before
    logit_token: Int64  # [L] place among the packed tokens

    @classmethod
    def of(cls, batch: Batch) -> BatchLayout:
        slots = batch.slots.astype(np.int64)
        query_start = np.zeros(batch.num_rows + 1, np.int32)
        np.cumsum(batch.num_query, out=query_start[1:])
        max_drafts = int(batch.num_drafts.max())
        uniform = bool(batch.resident.all() and batch.samples.all()) and bool(
            (batch.num_drafts == max_drafts).all()
        )
        sampling = np.flatnonzero(batch.samples)
        num_logits = 1 + batch.num_drafts[sampling]
        row = np.repeat(sampling, num_logits)
        offset = _ragged_arange(num_logits)
        token = query_start[row + 1] - 1 - batch.num_drafts[row] + offset
        return cls(slots, query_start, max_drafts, uniform, row, offset, token.astype(np.int64))

    @property
    def logit_slots(self) -> Int64:
        return self.slots[self.logit_row]

    @property
    def one_each(self) -> bool:
        """Every row of the batch has exactly one row of logits."""
        return len(self.logit_row) == len(self.slots) and not self.max_drafts


def decodes_only(batch: Batch) -> bool:
    """Whether every row is resident, samples, and has one token and no drafts."""
    if batch.num_tokens != batch.num_rows:
        return False
    return bool(batch.resident.all() and batch.samples.all())


def pack(batch: Batch, layout: BatchLayout) -> dict[str, NDArray[Any]]:
    """What `build` and `advance` need on the device."""
    if layout.uniform:
        return {"slots": layout.slots}
    num_query = batch.num_query
    fields = pack_rows(batch, layout)
    fields["query_start"] = layout.query_start
    fields["token_slots"] = np.repeat(layout.slots, num_query)
    fields["token_offset"] = _ragged_arange(num_query)
    fields["known"] = known_tokens(batch).astype(np.int64)
    fields["logit_token"] = layout.logit_token
    return fields


def pack_rows(batch: Batch, layout: BatchLayout) -> dict[str, NDArray[Any]]:
    """What `advance` needs of a batch that is not uniform."""
    fields: dict[str, NDArray[Any]] = {
        "slots": layout.slots,
        "num_query": batch.num_query.astype(np.int64),
    }
    if not layout.one_each:
        fields["logit_row"] = layout.logit_row
        fields["logit_offset"] = layout.logit_offset
        fields["samples"] = batch.samples.astype(np.int64)
        fields["num_drafts"] = batch.num_drafts.astype(np.int64)
    return fields


def known_tokens(batch: Batch) -> NDArray[np.int32]:
    """[num_tokens] ids, -1 where the token is on the device."""
    known = np.full(batch.num_tokens, -1, np.int32)
    known[np.repeat(~batch.resident, batch.num_query)] = batch.prompt_tokens
    return known


def build(
    batch: Batch, layout: BatchLayout, fields: dict[str, Tensor], state: SlotState, block_size: int
) -> ForwardBatch:
    """The step's tensors. Leaves the device's counters as they are: `sample` moves them on."""
    # Only the part of the table that some row uses is copied.
    num_blocks = -(-batch.max_seq_len // block_size)
    if layout.uniform:
        num_query = 1 + layout.max_drafts
        forward = uniform_inputs(state, fields["slots"], num_query, num_blocks, block_size)
    else:
        forward = _ragged_inputs(state, fields, num_blocks, block_size)
    forward.num_seqs = batch.num_rows
    forward.num_tokens = batch.num_tokens
    forward.max_query_len = batch.max_query_len
    forward.max_seq_len = batch.max_seq_len
    forward.host_query_start = layout.query_start
    forward.host_seq_lens = batch.start + batch.num_query
    return forward


def more_tables(
    forward: ForwardBatch,
    fields: dict[str, Tensor],
    state: SlotState,
    block_size: int,
) -> list[ForwardBatch]:
    """The batch with each of the slots' block tables but the first, which `forward` has."""
    num_blocks = forward.block_table.shape[1]
    slots, views = fields["slots"], []
    owners = fields.get("token_slots")
    if owners is None:
        owners = slots.repeat_interleave(forward.max_query_len)
    for table in state.block_tables[1:]:
        block = table[owners, forward.positions // block_size].long()
        views.append(
            replace(
                forward,
                block_table=table[:, :num_blocks][slots],
                slot_mapping=block * block_size + forward.positions % block_size,
            )
        )
    return views


def uniform_inputs(
    state: SlotState, slots: Tensor, num_query: int, num_blocks: int, block_size: int
) -> ForwardBatch:
    """Inputs of resident rows that compute `num_query` tokens each.

    Shapes depend on nothing but the arguments, and nothing is read back: it can be captured.
    """
    num_rows, device = len(slots), slots.device
    length = state.length[slots]
    table = state.block_table[:, :num_blocks][slots]
    positions = length.unsqueeze(1)  # [n, num_query] from here
    if num_query > 1:
        positions = positions + torch.arange(num_query, device=device)
    block = table.gather(1, positions // block_size)
    step = num_query
    return ForwardBatch(
        input_ids=state.next_input[:, :num_query][slots].flatten(),
        positions=positions.flatten(),
        slot_mapping=(block * block_size + positions % block_size).flatten(),
        query_start=torch.arange(0, num_rows * step + 1, step, dtype=torch.int32, device=device),
        seq_lens=(length + num_query).to(torch.int32),
        block_table=table,
        logits_rows=torch.arange(num_rows * num_query, device=device),
        num_seqs=num_rows,
        num_tokens=num_rows * num_query,
        max_query_len=num_query,
        max_seq_len=num_blocks * block_size,
    )


def _ragged_inputs(
    state: SlotState, fields: dict[str, Tensor], num_blocks: int, block_size: int
) -> ForwardBatch:
    slots, token_slots, offset = fields["slots"], fields["token_slots"], fields["token_offset"]
    positions = state.length[token_slots] + offset
    known = fields["known"]
    resident_input = state.next_input[token_slots, offset.clamp(max=state.next_input.shape[1] - 1)]
    block = state.block_table[token_slots, positions // block_size].long()
    return ForwardBatch(
        input_ids=torch.where(known < 0, resident_input, known),
        positions=positions,
        slot_mapping=block * block_size + positions % block_size,
        query_start=fields["query_start"],
        seq_lens=(state.length[slots] + fields["num_query"]).to(torch.int32),
        block_table=state.block_table[:, :num_blocks][slots],
        logits_rows=fields["logit_token"],
        num_seqs=len(slots),
        num_tokens=len(known),
        max_query_len=0,
        max_seq_len=0,
    )


def plan_layers(
    forward: ForwardBatch, more: list[ForwardBatch], layer_tables: Sequence[int]
) -> None:
    """Plan the attention of the batch with each table; `more` are those after the first."""
    forward.layer_tables, forward.more_tables = layer_tables, more
    for batch in (forward, *more):
        assert batch.attention is not None
        batch.plan = batch.attention.plan(batch)


def logit_rows(
    layout: BatchLayout, fields: dict[str, Tensor], forward: ForwardBatch, state: SlotState
) -> LogitRows:
    """Whose logits the step computes."""
    host_slots = layout.logit_slots
    if layout.one_each:
        index = forward.positions if layout.uniform else forward.positions[forward.logits_rows]
        return LogitRows(host_slots, fields["slots"], index + 1)
    if layout.uniform:
        num_query = 1 + layout.max_drafts
        slots = fields["slots"].repeat_interleave(num_query)
        num_preceding = torch.arange(num_query, device=slots.device).repeat(len(layout.slots))
    else:
        slots, num_preceding = fields["slots"][fields["logit_row"]], fields["logit_offset"]
    return LogitRows(
        host_slots=host_slots,
        slots=slots,
        index=forward.positions[forward.logits_rows] + 1,
        drafts=state.next_input[slots, 1 : 1 + layout.max_drafts] if layout.max_drafts else None,
        num_preceding=num_preceding if layout.max_drafts else None,
    )


def _ragged_arange(counts: NDArray[Any]) -> Int64:
    """0 to counts[0] - 1, then 0 to counts[1] - 1, and so on."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    starts: Int64 = ends - counts
    return np.arange(total) - np.repeat(starts, counts)

"""A step while it is being put together, and as it is remembered until its result is retired."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagemill.scheduler.batch import Admission, Batch, Int32, NewBlocks
from pagemill.scheduler.request import Request
from pagemill.scheduler.slots import Slots

_NO_INT32 = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """A batch and whose rows they are. `epochs` tell a row's request from the slot's next one."""

    batch: Batch
    requests: list[Request]  # [n]
    epochs: NDArray[np.int64]  # [n] of the slots when the step was scheduled


class DecodeRows(NamedTuple):
    """Rows of resident requests; each computes its last token and its drafts."""

    slots: Int32  # [n]
    requests: list[Request]  # [n]
    num_query: Int32  # [n] 1 + num_drafts
    num_drafts: Int32  # [n]
    start: Int32  # [n]


class PrefillRow(NamedTuple):
    request: Request
    slot: int
    start: int
    num_query: int
    samples: bool


@dataclass(slots=True)
class StepPlan:
    """Collects the rows of a step: first those that decode, then those with known text."""

    decodes: DecodeRows = field(default_factory=lambda: DecodeRows(_NO_INT32, [], *3 * [_NO_INT32]))
    prefills: list[PrefillRow] = field(default_factory=list)
    admitted: list[Admission] = field(default_factory=list)
    new_blocks: list[tuple[Int32, Int32, Int32]] = field(default_factory=list)  # as in NewBlocks
    num_preempted: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.decodes.requests) + len(self.prefills)

    def add_blocks(self, slot: int, first_index: int, block_ids: list[int]) -> None:
        """Append blocks to the table of one request."""
        if block_ids:
            index = np.arange(first_index, first_index + len(block_ids), dtype=np.int32)
            slots = np.full(len(block_ids), slot, np.int32)
            self.new_blocks.append((slots, index, np.array(block_ids, np.int32)))

    def build(self, slots: Slots) -> ScheduledStep | None:
        """The step, or None when it would have no rows."""
        if not self.num_rows:
            return None
        requests = self.decodes.requests
        if self.prefills:
            requests = [*requests, *(row.request for row in self.prefills)]
        batch = self._rows()
        batch.admitted = self.admitted
        batch.num_tokens = int(batch.num_query.sum())
        batch.max_query_len = int(batch.num_query.max())
        batch.max_seq_len = int((batch.start + batch.num_query).max())
        self._add_features(batch, slots)
        return ScheduledStep(batch, requests, slots.epoch[batch.slots])

    def _rows(self) -> Batch:
        decodes, prefills = self.decodes, self.prefills
        all_true = np.ones(len(decodes.requests), np.bool_)
        batch = Batch(
            slots=decodes.slots,
            num_query=decodes.num_query,
            num_drafts=decodes.num_drafts,
            start=decodes.start,
            samples=all_true,
            resident=all_true,
            prompt_tokens=_NO_INT32,
            new_blocks=self._join_blocks(),
        )
        if prefills:
            batch.slots = _append(batch.slots, [row.slot for row in prefills])
            batch.num_query = _append(batch.num_query, [row.num_query for row in prefills])
            batch.num_drafts = _append(batch.num_drafts, [0] * len(prefills))
            batch.start = _append(batch.start, [row.start for row in prefills])
            batch.samples = np.append(all_true, [row.samples for row in prefills])
            batch.resident = np.append(all_true, np.zeros(len(prefills), np.bool_))
            batch.prompt_tokens = _known_tokens(prefills)
        return batch

    def _join_blocks(self) -> NewBlocks:
        if not self.new_blocks:
            return NewBlocks(_NO_INT32, _NO_INT32, _NO_INT32)
        if len(self.new_blocks) == 1:
            return NewBlocks(*self.new_blocks[0])
        slots, index, block_ids = zip(*self.new_blocks, strict=True)
        return NewBlocks(np.concatenate(slots), np.concatenate(index), np.concatenate(block_ids))

    def _add_features(self, batch: Batch, slots: Slots) -> None:
        constrained = slots.has_grammar[batch.slots] & batch.samples
        if constrained.any():
            batch.needs_grammar = True
            batch.grammar_rows = constrained.nonzero()[0].astype(np.int32)
        if not self.prefills:
            return
        wanted = [_prompt_logprobs(row) for row in self.prefills]
        if any(top >= 0 for top in wanted):
            nothing = np.full(len(self.decodes.requests), -1, np.int32)
            batch.prompt_logprobs = _append(nothing, wanted)


def _append(decodes: Int32, prefills: list[int]) -> Int32:
    return np.concatenate((decodes, np.array(prefills, np.int32)))


def _known_tokens(rows: list[PrefillRow]) -> Int32:
    tokens = array("i")
    for row in rows:
        tokens += row.request.token_ids[row.start : row.start + row.num_query]
    return np.frombuffer(tokens, np.int32)


def _prompt_logprobs(row: PrefillRow) -> int:
    top = row.request.params.prompt_logprobs
    if top is None or row.start >= row.request.prompt_len - 1:
        return -1
    return top

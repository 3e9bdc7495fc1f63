"""A step while it is being put together, and as it is remembered until its result is retired."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagemill.scheduler.batch import Admission, Batch, Bool, Int32, NewBlocks
from pagemill.scheduler.request import Request
from pagemill.scheduler.slots import Index, Slots

_NO_INT32 = np.zeros(0, np.int32)
_NO_INDEX = np.zeros(0, np.intp)


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """A batch and whose rows they are. `epochs` tell a row's request from the slot's next one."""

    batch: Batch
    requests: list[Request]  # [n]
    slots: Index  # [n] as in the batch
    epochs: NDArray[np.int64]  # [n] of the slots when the step was scheduled


class DecodeRows(NamedTuple):
    """Rows of resident requests; each computes its last token and its drafts."""

    slots: Index  # [n]
    requests: list[Request]  # [n]
    num_query: Int32  # [n] 1 + num_drafts
    num_drafts: Int32  # [n]
    start: Int32  # [n]
    num_tokens: int  # the sum of num_query


_NO_DECODES = DecodeRows(_NO_INDEX, [], _NO_INT32, _NO_INT32, _NO_INT32, 0)


class PrefillRow(NamedTuple):
    request: Request
    slot: int
    start: int
    num_query: int
    samples: bool


@dataclass(slots=True)
class StepPlan:
    """Collects the rows of a step: first those that decode, then those with known text."""

    decodes: DecodeRows = _NO_DECODES
    prefills: list[PrefillRow] = field(default_factory=list)
    admitted: list[Admission] = field(default_factory=list)
    block_slots: list[int] = field(default_factory=list)  # this and the next two: as NewBlocks
    block_index: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)  # row by row
    num_preempted: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.decodes.requests) + len(self.prefills)

    def add_blocks(
        self, slots: list[int], first_index: list[int], counts: list[int], block_ids: list[int]
    ) -> None:
        """Append so many columns of blocks to the tables of each slot."""
        for slot, first, count in zip(slots, first_index, counts, strict=True):
            self.block_slots += [slot] * count
            self.block_index += range(first, first + count)
        self.block_ids += block_ids

    def build(self, slots: Slots) -> ScheduledStep | None:
        """The step, or None when it would have no rows."""
        if not self.num_rows:
            return None
        requests = self.decodes.requests
        if self.prefills:
            requests = [*requests, *(row.request for row in self.prefills)]
        batch = self._rows()
        batch.admitted = self.admitted
        batch.num_tokens = self.decodes.num_tokens + sum(row.num_query for row in self.prefills)
        if batch.num_tokens == self.num_rows:
            batch.max_query_len, batch.max_seq_len = 1, int(batch.start.max()) + 1
        else:
            batch.max_query_len = int(batch.num_query.max())
            batch.max_seq_len = int((batch.start + batch.num_query).max())
        index = batch.slots.astype(np.intp) if self.prefills else self.decodes.slots
        self._add_features(batch, slots.has_grammar[index])
        return ScheduledStep(batch, requests, index, slots.epoch[index])

    def _rows(self) -> Batch:
        decodes, prefills = self.decodes, self.prefills
        all_true = np.ones(len(decodes.requests), np.bool_)
        batch = Batch(
            slots=decodes.slots.astype(np.int32),
            num_query=decodes.num_query,
            num_drafts=decodes.num_drafts,
            start=decodes.start,
            samples=all_true,
            resident=all_true,
            prompt_tokens=_NO_INT32,
            new_blocks=self._new_blocks(),
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

    def _new_blocks(self) -> NewBlocks:
        count = len(self.block_slots)
        shape = count, len(self.block_ids) // max(count, 1)
        return NewBlocks(
            _to_int32(self.block_slots),
            _to_int32(self.block_index),
            _to_int32(self.block_ids).reshape(shape),
        )

    def _add_features(self, batch: Batch, has_grammar: Bool) -> None:
        constrained = has_grammar & batch.samples
        if np.count_nonzero(constrained):
            batch.needs_grammar = True
            batch.grammar_rows = constrained.nonzero()[0].astype(np.int32)
        if not self.prefills:
            return
        wanted = [_prompt_logprobs(row) for row in self.prefills]
        if any(top >= 0 for top in wanted):
            nothing = np.full(len(self.decodes.requests), -1, np.int32)
            batch.prompt_logprobs = _append(nothing, wanted)


def _to_int32(values: list[int]) -> Int32:
    return np.array(values, np.int32)


def _append(decodes: Int32, prefills: list[int]) -> Int32:
    return np.concatenate((decodes, _to_int32(prefills)))


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

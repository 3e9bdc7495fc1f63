"""A step of resident rows with one token each: from the slots' last tokens to the next ones.

Everything is looked up by slot where the model runs, so the host's share of a step is its slots,
and those only when they change. `graphs.py` captures this work; without graphs it is done at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.attention.base import AttentionBackend, ForwardBatch, LayerCache
from pagemill.device.base import Graph
from pagemill.models.base import Model
from pagemill.ops.decode import DecodeInputs, DecodeOps, DecodeState
from pagemill.ops.sampling import Filters
from pagemill.runner.inputs import plan_layers
from pagemill.runner.slots import SlotState


class Sampling(Enum):
    """How much of a step is done without the sampler."""

    NONE = "none"  # hidden states only: the sampler does what its kernels alone cannot
    GREEDY = "greedy"
    TEMPERATURE = "temperature"  # with greedy rows among them
    FILTERED = "filtered"  # top-k, top-p and min-p as well, with any of the above among them

    @property
    def filters(self) -> Filters:
        """What rows of a graph may use; all or nothing, which keeps graphs few."""
        on = self is Sampling.FILTERED
        return Filters(top_k=on, top_p=on, min_p=on)


@dataclass(frozen=True, slots=True)
class DecodeModel:
    """What runs in a step."""

    model: Model
    attention: AttentionBackend
    kv_cache: list[LayerCache]
    ops: DecodeOps
    block_size: int
    layer_tables: tuple[int, ...] = ()  # by layer; all the first when empty


def decode_state(slots: SlotState) -> DecodeState:
    """What such steps read and write of the slots."""
    return DecodeState(
        slots.length,
        slots.next_input,
        slots.block_table,
        slots.sampling.by_slot,
    )


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The inputs of a number of rows, one for each table, and the batch made of them."""

    slots: Tensor
    inputs: list[DecodeInputs]
    forward: ForwardBatch
    tokens: Tensor


class DecodeStep:
    """The work of a step, and the memory in which it finds its rows and leaves its results.

    With `reuse` a step writes its inputs over those of the one before, if it has as many rows.
    """

    def __init__(
        self, model: DecodeModel, slots: SlotState, max_rows: int, *, reuse: bool = False
    ) -> None:
        self._model = model
        self._spare = slots.scratch
        self._state = decode_state(slots)
        tables = slots.block_tables.unbind()
        self._states = [replace(self._state, block_table=table) for table in tables]
        self._reuse = reuse
        self._last: _Prepared | None = None
        on_device = slots.length.device
        self._slots = torch.full((max_rows,), self._spare, device=on_device)  # int64
        self._tokens = torch.zeros(max_rows, dtype=torch.int32, device=on_device)
        self._query_start = torch.arange(max_rows + 1, dtype=torch.int32, device=on_device)
        self._positions = torch.zeros(max_rows, dtype=torch.int64, device=on_device)
        self._hidden: Tensor | None = None  # [max_rows, hidden], once its width is known
        self._on_device = np.full(max_rows, self._spare, np.int64)  # what `_slots` holds

    def pack(self, slots: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """What `update` needs on the device: nothing while the rows stay the same."""
        num_rows = len(slots)
        stays = np.array_equal(self._on_device[:num_rows], slots)
        if stays and (self._on_device[num_rows:] == self._spare).all():
            return {}
        self._on_device[:num_rows] = slots
        self._on_device[num_rows:] = self._spare
        return {"graph_slots": self._on_device.copy()}

    def update(self, fields: dict[str, Tensor]) -> None:
        """Take in the rows of the next step."""
        if "graph_slots" in fields:
            self._slots.copy_(fields["graph_slots"])

    def clear(self) -> None:
        """All rows are padding, until the next `update`."""
        self._slots.fill_(self._spare)
        self._on_device[:] = self._spare

    def slots(self, num_rows: int) -> Tensor:
        """The rows' slots on the device, [n] int64."""
        return self._slots[:num_rows]

    def tokens(self, num_rows: int) -> Tensor:
        """What the last step has sampled, [n] int32; valid until the next."""
        return self._tokens[:num_rows]

    def hidden(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Hidden states [n, hidden] and positions [n] of the last step without sampling."""
        assert self._hidden is not None
        return self._hidden[:num_rows], self._positions[:num_rows]

    def run(self, size: int, sampling: Sampling) -> None:
        """Compute the first `size` rows; those of the spare slot are padding."""
        own, rows = self._model, self._prepare(size)
        hidden = own.model.forward(rows.forward)
        inputs = rows.inputs[0]
        if sampling is Sampling.NONE:
            self._keep(hidden, inputs.positions)
            return
        logits = own.model.compute_logits(hidden)
        if sampling is Sampling.GREEDY:
            tokens = own.ops.argmax(logits)
        else:
            tokens = own.ops.sample(logits, inputs.sampling, sampling.filters)
        own.ops.decode_advance(rows.slots, self._state, tokens, rows.tokens)

    def _prepare(self, size: int) -> _Prepared:
        own, last = self._model, self._last
        if last is not None and len(last.slots) == size:
            for state, written in zip(self._states, last.inputs, strict=True):
                own.ops.decode_inputs(last.slots, state, own.block_size, written)
            return last
        slots = self._slots[:size]
        inputs = [own.ops.decode_inputs(slots, state, own.block_size) for state in self._states]
        forward = self._forward_batch(inputs[0], size)
        more = [
            replace(forward, block_table=other.block_table, slot_mapping=other.slot_mapping)
            for other in inputs[1:]
        ]
        plan_layers(forward, more, own.layer_tables)
        prepared = _Prepared(slots, inputs, forward, self._tokens[:size])
        self._last = prepared if self._reuse else None
        return prepared

    def _keep(self, hidden: Tensor, positions: Tensor) -> None:
        if self._hidden is None:
            self._hidden = hidden.new_empty(len(self._slots), hidden.shape[1])
        self._hidden[: len(hidden)] = hidden
        self._positions[: len(positions)] = positions

    def _forward_batch(self, inputs: DecodeInputs, size: int) -> ForwardBatch:
        return ForwardBatch(
            input_ids=inputs.input_ids,
            positions=inputs.positions,
            slot_mapping=inputs.slot_mapping,
            query_start=self._query_start[: size + 1],
            seq_lens=inputs.seq_lens,
            block_table=inputs.block_table,
            logits_rows=self._query_start[:size],
            num_seqs=size,
            num_tokens=size,
            max_query_len=1,
            max_seq_len=self._state.block_table.shape[1] * self._model.block_size,
            kv_cache=self._model.kv_cache,
            attention=self._model.attention,
        )


class DecodeSteps(Protocol):
    """How steps are started."""

    def find(self, num_rows: int, sampling: Sampling) -> Graph | None:
        """What runs a step of `num_rows` rows when it is replayed; None if there is nothing."""
        ...


class EagerSteps:
    """Implements `DecodeSteps` without graphs, for exactly as many rows as there are."""

    def __init__(self, step: DecodeStep) -> None:
        self._step = step

    def find(self, num_rows: int, sampling: Sampling) -> Graph:
        return _Run(self._step, num_rows, sampling)


@dataclass(frozen=True, slots=True)
class _Run:
    """Implements `Graph`."""

    step: DecodeStep
    num_rows: int
    sampling: Sampling

    def replay(self) -> None:
        self.step.run(self.num_rows, self.sampling)

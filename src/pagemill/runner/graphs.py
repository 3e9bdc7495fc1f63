"""Decode steps as captured graphs: one launch from the slots' last tokens to the next ones.

A step is captured once for each padded number of rows; rows too many stand for the spare slot and
write nowhere. The graph looks its inputs up on the device, so the host's share of a step is its
slots, and those only when they change.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from dataclasses import dataclass, replace
from enum import Enum
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.attention.base import AttentionBackend, ForwardBatch, LayerCache
from pagemill.device.base import CapturesGraphs, Graph
from pagemill.models.base import Model
from pagemill.ops.decode import DecodeInputs, DecodeOps, DecodeState
from pagemill.ops.sampling import Filters
from pagemill.runner.inputs import plan_layers
from pagemill.runner.slots import SlotState

logger = logging.getLogger(__name__)

_SMALL_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_STEPS_PER_DOUBLING = 4  # beyond: padding costs at most a quarter of the rows
# What is captured at start, besides the largest size.
_FIRST_SIZES = (8, 1)


class Sampling(Enum):
    """How much of a step is in its graph."""

    NONE = "none"  # hidden states only: the sampler does what the graph cannot
    GREEDY = "greedy"
    TEMPERATURE = "temperature"  # with greedy rows among them
    FILTERED = "filtered"  # top-k, top-p and min-p as well, with any of the above among them

    @property
    def filters(self) -> Filters:
        """What rows of a graph may use; all or nothing, which keeps graphs few."""
        on = self is Sampling.FILTERED
        return Filters(top_k=on, top_p=on, min_p=on)


# Chats commonly have a top-p or top-k of their model's own.
_BY_USE = (Sampling.FILTERED, Sampling.TEMPERATURE, Sampling.GREEDY, Sampling.NONE)


@dataclass(frozen=True, slots=True)
class DecodeModel:
    """What is captured."""

    model: Model
    attention: AttentionBackend
    kv_cache: list[LayerCache]
    ops: DecodeOps
    block_size: int
    layer_tables: tuple[int, ...] = ()  # by layer; all the first when empty


def padded_sizes(max_rows: int) -> list[int]:
    """The numbers of rows to capture for, ascending; the last is `max_rows`."""
    sizes, size = set(_SMALL_SIZES), _SMALL_SIZES[-1]
    while size < max_rows:
        sizes |= set(range(size, 2 * size, size // _STEPS_PER_DOUBLING))
        size *= 2
    return sorted({size for size in sizes if size < max_rows} | {max_rows})


def decode_state(slots: SlotState) -> DecodeState:
    """What captured steps read and write of the slots."""
    return DecodeState(
        slots.length,
        slots.next_input,
        slots.block_table,
        slots.sampling.by_slot,
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a capture failed for lack of memory; the driver's own has no class in torch."""
    return "out of memory" in str(error)


class DecodeGraphs:
    """Graphs by size and kind of sampling, captured when first asked for."""

    def __init__(
        self, model: DecodeModel, device: CapturesGraphs, slots: SlotState, max_rows: int
    ) -> None:
        self._model = model
        self._device = device
        self._sizes = padded_sizes(max_rows)
        self._spare = slots.scratch
        self._more_tables = list(slots.block_tables[1:])
        self._state = decode_state(slots)
        most, on_device = self._sizes[-1], slots.length.device
        self._slots = torch.full((most,), self._spare, device=on_device)  # int64
        self._tokens = torch.zeros(most, dtype=torch.int32, device=on_device)
        self._query_start = torch.arange(most + 1, dtype=torch.int32, device=on_device)
        self._positions = torch.zeros(most, dtype=torch.int64, device=on_device)
        self._hidden: Tensor | None = None  # [most, hidden], once its width is known
        self._on_device = np.full(most, self._spare, np.int64)  # what `_slots` holds
        self._graphs: dict[tuple[int, Sampling], Graph] = {}
        self._refused: set[tuple[int, Sampling]] = set()  # there was no memory for these

    @property
    def sizes(self) -> list[int]:
        return self._sizes

    def find(self, num_rows: int, sampling: Sampling) -> Graph | None:
        """The graph for at least `num_rows` rows, captured if it is missing.

        A larger one stands in where there is no memory to capture it; None: there is none.
        """
        sizes = self._sizes[bisect_left(self._sizes, num_rows) :]
        if (sizes[0], sampling) not in self._refused:
            try:
                return self.capture(num_rows, sampling)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._refused.add((sizes[0], sampling))
                logger.warning("no memory for the CUDA graph of %d rows", sizes[0])
        captured = (self._graphs.get((size, sampling)) for size in sizes)
        return next((graph for graph in captured if graph is not None), None)

    def capture(self, num_rows: int, sampling: Sampling) -> Graph:
        """The graph for at least `num_rows` rows. No slot changes, but a new one takes a while."""
        size = self._sizes[bisect_left(self._sizes, num_rows)]
        graph = self._graphs.get((size, sampling))
        if graph is None:
            self._slots.fill_(self._spare)
            self._on_device[:] = self._spare
            self._step(size, sampling)  # compiles and allocates what outlives a step
            graph = self._device.capture(lambda: self._step(size, sampling))
            self._graphs[size, sampling] = graph
        return graph

    def capture_first(self) -> int:
        """Capture what is wanted from the start on; how many there are.

        That is every kind for few rows. The largest size comes first, so that the others fit into
        its memory, of which a search needs hardly any.
        """
        most = self._sizes[-1]
        sizes = (most, *(size for size in _FIRST_SIZES if size < most))
        for size, sampling in product(sizes, Sampling):
            if sampling is not Sampling.FILTERED or size <= _FIRST_SIZES[0]:
                self.capture(size, sampling)
        return len(self._graphs)

    def capture_another(self) -> bool:
        """Capture one that is missing, the commonest kind of sampling first; False if none is."""
        for sampling in _BY_USE:
            for size in reversed(self._sizes):
                if (size, sampling) not in self._graphs and (size, sampling) not in self._refused:
                    return self.find(size, sampling) is not None
        return False

    def pack(self, slots: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What `update` needs on the device: nothing while the rows stay the same."""
        num_rows = len(slots)
        stays = np.array_equal(self._on_device[:num_rows], slots)
        if stays and (self._on_device[num_rows:] == self._spare).all():
            return {}
        self._on_device[:num_rows] = slots
        self._on_device[num_rows:] = self._spare
        return {"graph_slots": self._on_device.copy()}

    def update(self, fields: dict[str, Tensor]) -> None:
        """Take in the rows of the next replay."""
        if "graph_slots" in fields:
            self._slots.copy_(fields["graph_slots"])

    def slots(self, num_rows: int) -> Tensor:
        """The rows' slots on the device, [n] int64."""
        return self._slots[:num_rows]

    def tokens(self, num_rows: int) -> Tensor:
        """What the last replay has sampled, [n] int32; valid until the next."""
        return self._tokens[:num_rows]

    def hidden(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Hidden states [n, hidden] and positions [n] of the last replay without sampling."""
        assert self._hidden is not None
        return self._hidden[:num_rows], self._positions[:num_rows]

    def _step(self, size: int, sampling: Sampling) -> None:
        own = self._model
        slots = self._slots[:size]
        inputs = own.ops.decode_inputs(slots, self._state, own.block_size)
        forward = self._forward_batch(inputs, size)
        plan_layers(forward, self._more_tables_of(forward, slots), own.layer_tables)
        hidden = own.model.forward(forward)
        if sampling is Sampling.NONE:
            self._keep(hidden, inputs.positions)
            return
        logits = own.model.compute_logits(hidden)
        if sampling is Sampling.GREEDY:
            tokens = own.ops.argmax(logits)
        else:
            tokens = own.ops.sample(logits, inputs.sampling, sampling.filters)
        own.ops.decode_advance(slots, self._state, tokens, self._tokens[:size])

    def _keep(self, hidden: Tensor, positions: Tensor) -> None:
        if self._hidden is None:
            self._hidden = hidden.new_empty(self._sizes[-1], hidden.shape[1])
        self._hidden[: len(hidden)] = hidden
        self._positions[: len(positions)] = positions

    def _more_tables_of(self, forward: ForwardBatch, slots: Tensor) -> list[ForwardBatch]:
        """The batch with each block table but the first; only few models have more."""
        more = []
        for table in self._more_tables:
            state = replace(self._state, block_table=table)
            inputs = self._model.ops.decode_inputs(slots, state, self._model.block_size)
            block_table, mapping = inputs.block_table, inputs.slot_mapping
            more.append(replace(forward, block_table=block_table, slot_mapping=mapping))
        return more

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

"""A device that captures without a GPU, and drivers whose steps are graphs.

The device replays a graph by running its work again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pagemill.attention.base import ForwardBatch
from pagemill.device.cpu import CpuDevice
from pagemill.ops.decode import DecodeInputs, DecodeState
from pagemill.ops.packed import PackedInputs, PackedRows
from pagemill.ops.sampling import Filters, SamplingRows, SlotSampling
from pagemill.runner.decode_step import Sampling
from pagemill.runner.memory import allocate_cache
from pagemill.runner.runner import ModelRunner
from pagemill.sampling.categorical import draw
from pagemill.sampling.filters import keep_top_p, min_p_limit, top_k_limit
from pagemill.sampling.random import uniform
from unit.runner.harness import (
    BLOCK_SIZE,
    BLOCKS_PER_SLOT,
    NUM_SLOTS,
    CacheModel,
    Driver,
    NoAttention,
)


@dataclass
class Rerun:
    """Implements `Graph`."""

    work: Callable[[], None]
    num_replayed: int = 0

    def replay(self) -> None:
        self.num_replayed += 1
        self.work()


class GraphDevice(CpuDevice):
    """A CPU that captures, and counts how often."""

    error: RuntimeError | None = None

    def __init__(self, num_threads: int) -> None:
        super().__init__(num_threads)
        self.graphs: list[Rerun] = []

    @property
    def num_captured(self) -> int:
        return len(self.graphs)

    @property
    def num_replayed(self) -> int:
        return sum(graph.num_replayed for graph in self.graphs)

    def capture(self, work: Callable[[], None]) -> Rerun:
        if self.error is not None:
            raise self.error
        self.graphs.append(Rerun(work))
        return self.graphs[-1]


def look_up(slots: Tensor, spare: Tensor, index: Tensor, state: SlotSampling) -> SamplingRows:
    """How slots [n] sample, and their numbers for the places `index` [n]."""
    return SamplingRows(
        temperature=torch.where(spare, 0.0, state.temperature[slots]),
        top_k=state.top_k[slots],
        top_p=state.top_p[slots],
        min_p=state.min_p[slots],
        uniform=uniform(state.seeds[slots], index),
    )


class TorchDecode:
    """Implements `DecodeOps`, and remembers which sampling was asked for."""

    def __init__(self) -> None:
        self.calls: list[Sampling] = []

    def decode_inputs(
        self,
        slots: Tensor,
        state: DecodeState,
        block_size: int,
        into: DecodeInputs | None = None,
    ) -> DecodeInputs:
        length, table = state.length[slots], state.block_table[slots]
        block = table.gather(1, (length // block_size).unsqueeze(1)).squeeze(1)
        spare = slots == len(state.length) - 1
        return DecodeInputs(
            input_ids=state.next_input[slots, 0],
            positions=length,
            slot_mapping=torch.where(spare, -1, block * block_size + length % block_size),
            seq_lens=(length + 1).int(),
            block_table=table,
            sampling=look_up(slots, spare, length + 1, state.sampling),
        )

    def decode_advance(
        self, slots: Tensor, state: DecodeState, tokens: Tensor, out: Tensor
    ) -> None:
        out.copy_(tokens)
        real = slots != len(state.length) - 1
        state.length[slots[real]] += 1
        state.next_input[slots[real], 0] = tokens[real]

    def argmax(self, logits: Tensor) -> Tensor:
        self.calls.append(Sampling.GREEDY)
        return logits.argmax(1)

    def sample(self, logits: Tensor, rows: SamplingRows, filters: Filters) -> Tensor:
        assert filters in (Filters(), Filters(True, True, True))
        self.calls.append(Sampling.FILTERED if filters else Sampling.TEMPERATURE)
        scaled = logits / rows.temperature.clamp(min=1e-6).unsqueeze(1)
        distance = scaled.amax(1, keepdim=True) - scaled
        weights = torch.exp(-distance)
        if filters:
            width = logits.shape[1]
            nearest = top_k_limit(distance, rows.top_k.long().clamp(1, width), width)
            limit = torch.minimum(nearest, min_p_limit(rows.min_p))
            weights = torch.where(distance <= limit, weights, 0.0)
            kept = keep_top_p(distance, weights, rows.top_p)
            weights = torch.where(rows.top_p.unsqueeze(1) < 1, kept, weights)
        drawn = draw(weights, rows.uniform)
        return torch.where(rows.temperature > 0, drawn, logits.argmax(1))


class TorchPacked(TorchDecode):
    """Implements `PackedOps`."""

    def packed_inputs(self, rows: PackedRows, state: DecodeState, block_size: int) -> PackedInputs:
        slots, start, token_rows = rows.slots.long(), rows.query_start.long(), rows.token_rows
        real, spare = token_rows >= 0, slots == len(state.length) - 1
        row = token_rows.clamp(min=0).long()
        offset = torch.arange(len(row), device=row.device) - start[row]
        positions = torch.where(real, state.length[slots[row]] + offset, 0)
        block = state.block_table[slots[row], positions // block_size].long()
        known = rows.known.long()
        ids = torch.where(known < 0, state.next_input[slots[row], 0], known)
        seq_lens = state.length[slots] + start.diff()
        return PackedInputs(
            input_ids=torch.where(real, ids, 0),
            positions=positions,
            slot_mapping=torch.where(real, block * block_size + positions % block_size, -1),
            seq_lens=seq_lens.int(),
            block_table=state.block_table[slots],
            last_tokens=(start[1:] - 1).clamp(min=0),
            sampling=look_up(slots, spare, seq_lens, state.sampling),
        )

    def packed_advance(
        self, rows: PackedRows, state: DecodeState, tokens: Tensor, out: Tensor
    ) -> None:
        tokens = torch.where(rows.samples != 0, tokens, 0)
        out.copy_(tokens)
        real = rows.slots != len(state.length) - 1
        slots = rows.slots[real].long()
        state.length[slots] += rows.query_start.diff()[real]
        state.next_input[slots, 0] = tokens[real]


class PaddedModel(CacheModel):
    """Padding is in the last cell of the cache, which no block table leads to."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        spare = batch.kv_cache[0].k.numel() - 1
        mapping = torch.where(batch.slot_mapping < 0, spare, batch.slot_mapping)
        return super().forward(replace(batch, slot_mapping=mapping))


class PaddedTwoTableModel(PaddedModel):
    """Keeps the text twice and reads both."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        keys, others = (super(PaddedTwoTableModel, self).forward(batch.of_layer(i)) for i in (0, 1))
        real = batch.slot_mapping >= 0
        assert torch.equal(keys[real], others[real])
        return keys


class AnyAttention(NoAttention):
    """Takes batches without the host's lengths too."""

    def plan(self, batch: ForwardBatch) -> None:
        if batch.host_query_start is not None:
            super().plan(batch)


class GraphDriver(Driver):
    """A driver whose decode steps are graphs; with `TorchPacked`, steps with prompts too."""

    def __init__(
        self,
        num_tables: int = 1,
        ops: TorchDecode | None = None,
        device: CpuDevice | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_tables=num_tables)
        model = PaddedModel() if num_tables == 1 else PaddedTwoTableModel()
        self.device: Any = device or GraphDevice(1)
        self.ops = ops or TorchDecode()
        num_blocks = 2 + NUM_SLOTS * BLOCKS_PER_SLOT * num_tables
        cache = allocate_cache(
            self.device, model.kv_cache_specs(), num_blocks, BLOCK_SIZE, torch.float32
        )
        config = self.config.__class__(
            **{name: getattr(self.config, name) for name in self.config.__struct_fields__}
            | settings
        )
        tables = tuple(range(num_tables))
        self.runner = ModelRunner(
            config, model, self.device, AnyAttention(), cache, None, self.ops, tables
        )

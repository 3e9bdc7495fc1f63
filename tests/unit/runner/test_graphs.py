"""Decode steps through graphs yield what they yield without, and padding writes nowhere.

The device here replays a graph by running its work again, so that this needs no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pagemill.attention.base import ForwardBatch
from pagemill.device.cpu import CpuDevice
from pagemill.ops.decode import DecodeInputs, DecodeState
from pagemill.params import SamplingParams
from pagemill.runner.graphs import Sampling, padded_sizes
from pagemill.runner.memory import allocate_cache
from pagemill.runner.runner import ModelRunner
from pagemill.sampling.categorical import draw
from pagemill.sampling.random import uniform
from unit.runner.harness import (
    BLOCK_SIZE,
    BLOCKS_PER_SLOT,
    GREEDY,
    NUM_SLOTS,
    CacheModel,
    Driver,
    NoAttention,
    Row,
    greedy_reference,
)

RANDOM = SamplingParams(temperature=0.8)
FILTERED = SamplingParams(temperature=0.8, top_p=0.7)
PENALISED = SamplingParams(temperature=0.0, repetition_penalty=1.8)
SCORED = SamplingParams(temperature=0.0, logprobs=2)


@dataclass
class Rerun:
    """Implements `Graph`."""

    work: Callable[[], None]

    def replay(self) -> None:
        self.work()


class GraphDevice(CpuDevice):
    """A CPU that captures, and counts how often."""

    num_captured = 0

    def capture(self, work: Callable[[], None]) -> Rerun:
        self.num_captured += 1
        return Rerun(work)


class TorchDecode:
    """Implements `DecodeOps`, and remembers which sampling was asked for."""

    def __init__(self) -> None:
        self.calls: list[Sampling] = []

    def decode_inputs(self, slots: Tensor, state: DecodeState, block_size: int) -> DecodeInputs:
        length, table = state.length[slots], state.block_table[slots]
        block = table.gather(1, (length // block_size).unsqueeze(1)).squeeze(1)
        spare = slots == len(state.length) - 1
        return DecodeInputs(
            input_ids=state.next_input[slots, 0],
            positions=length,
            slot_mapping=torch.where(spare, -1, block * block_size + length % block_size),
            seq_lens=(length + 1).int(),
            block_table=table,
            temperature=torch.where(spare, 0.0, state.temperature[slots]),
            uniform=uniform(state.seeds[slots], length + 1),
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

    def sample_by_temperature(self, logits: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
        self.calls.append(Sampling.TEMPERATURE)
        scaled = logits / temperature.clamp(min=1e-6).unsqueeze(1)
        weights = torch.exp(scaled - scaled.amax(1, keepdim=True))
        return torch.where(temperature > 0, draw(weights, uniform), logits.argmax(1))


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
    """A driver whose decode steps are graphs."""

    def __init__(self, num_tables: int = 1, **settings: Any) -> None:
        super().__init__(num_tables=num_tables)
        model = PaddedModel() if num_tables == 1 else PaddedTwoTableModel()
        self.device = GraphDevice(1)
        self.ops = TorchDecode()
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


def generate(driver: Driver, params: list[SamplingParams], orders: list[list[int]]) -> list[Any]:
    """Tokens of each step: prompts at once, then one token of the slots in each order."""
    for slot, own in enumerate(params):
        driver.admit(slot, [5 + slot, 7, 11], own, seed=slot)
    first = driver.tokens(*(Row(slot, 3) for slot in range(len(params))))
    return [first, *(driver.tokens(*(Row(slot) for slot in order)) for order in orders)]


ORDERS = [[0, 1, 2], [0, 1, 2], [2, 0], [1], [1], [2, 1, 0], [0, 1, 2], [0], [2, 1], [0, 1, 2]] * 2


@pytest.mark.parametrize(
    "params",
    [
        [GREEDY] * 3,
        [RANDOM] * 3,
        [GREEDY, RANDOM, GREEDY],
        [FILTERED, GREEDY, RANDOM],
        [PENALISED, RANDOM, GREEDY],
        [SCORED, GREEDY, FILTERED],
    ],
)
def test_same_tokens_as_without_graphs(params: list[SamplingParams]) -> None:
    driver = GraphDriver()
    assert generate(driver, params, ORDERS) == generate(Driver(), params, ORDERS)
    assert driver.device.num_captured > 0


@pytest.mark.parametrize("num_tables", [1, 2])
def test_greedy_rows_of_any_number(num_tables: int) -> None:
    driver = GraphDriver(num_tables)
    for slot in range(NUM_SLOTS):
        driver.admit(slot, [3, slot])
    found = [[t] for row in driver.tokens(*(Row(s, 2) for s in range(NUM_SLOTS))) for t in row]
    for count in (5, 3, 1, 4, 2, 5, 5):
        for slot, tokens in enumerate(driver.tokens(*(Row(slot) for slot in range(count)))):
            found[slot] += tokens
    for slot, tokens in enumerate(found):
        assert tokens == greedy_reference([3, slot], len(tokens))


def test_simple_sampling_is_inside() -> None:
    driver = GraphDriver()
    generate(driver, [GREEDY, RANDOM, FILTERED], [[0]])
    assert set(driver.ops.calls) == {Sampling.GREEDY}
    driver.tokens(Row(0), Row(1))
    assert driver.ops.calls[-1] is Sampling.TEMPERATURE
    num_calls = len(driver.ops.calls)
    driver.tokens(Row(2), Row(1))
    assert len(driver.ops.calls) == num_calls


def test_each_size_is_captured_once() -> None:
    driver = GraphDriver()
    generate(driver, [GREEDY] * 4, [[0, 1, 2], [2, 1, 0], [0, 1, 2, 3], [0], [0]])
    assert driver.device.num_captured == 2  # for four rows, and for one
    first = GraphDriver()
    assert first.runner.capture_graphs() == first.device.num_captured == 2 * len(Sampling)


def test_the_rest_is_captured_while_idle() -> None:
    driver = GraphDriver()
    driver.runner.capture_graphs()
    captured = driver.device.num_captured
    while driver.runner.capture_another():
        captured += 1
        assert driver.device.num_captured == captured
    assert captured == len(Sampling) * len(padded_sizes(NUM_SLOTS))
    generate(driver, [GREEDY] * 4, [[0, 1, 2], [0], [1, 0]])
    assert driver.device.num_captured == captured


def test_graphs_can_be_turned_off() -> None:
    driver = GraphDriver(cuda_graphs=False)
    generate(driver, [GREEDY], [[0]] * 3)
    assert driver.runner.capture_graphs() == driver.device.num_captured == 0
    assert not driver.runner.capture_another()


@pytest.mark.parametrize("most", [1, 5, 8, 64, 100, 256, 1000])
def test_padding_is_little(most: int) -> None:
    sizes = padded_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[-1] == most and sizes[0] == 1
    for rows in range(1, most + 1):
        size = next(s for s in sizes if s >= rows)
        assert size - rows <= max(15, rows // 4)

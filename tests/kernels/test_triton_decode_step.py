"""The kernels around the model in a captured decode step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.triton_harness import DEVICES
from pagemill.ops.decode import DecodeOps, DecodeState
from pagemill.ops.sampling import Filters, SamplingRows, SlotSampling
from pagemill.ops.triton.ops import TritonOps
from pagemill.sampling.random import uniform

NUM_SLOTS, BLOCK_SIZE, MAX_BLOCKS = 6, 4, 700
SPARE = NUM_SLOTS


def make_state(device: str) -> DecodeState:
    rows = NUM_SLOTS + 1
    generator = torch.Generator().manual_seed(1)
    table = torch.randperm(rows * MAX_BLOCKS, generator=generator).int().view(rows, MAX_BLOCKS)
    columns = torch.rand(rows, 7, generator=generator) + 0.1
    length = torch.tensor([0, 3, 4, 5, 2500, 77, 0])
    seeds = torch.tensor([0, 1, -1, 2**62 + 12345, -(2**63), 9, 5])
    next_input = torch.randint(0, 90, (rows, 3), generator=generator)
    tensors = (length, next_input, table, columns, seeds)
    length, next_input, table, columns, seeds = (x.to(device) for x in tensors)
    sampling = SlotSampling(columns[:, 2], columns[:, 0], columns[:, 1], columns[:, 4], seeds)
    return DecodeState(length, next_input, table, sampling)


def snapshot(state: DecodeState) -> tuple[Tensor, Tensor]:
    return state.length.clone(), state.next_input.clone()


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_are_those_of_the_slots(device: str) -> None:
    ops, state = TritonOps(), make_state(device)
    assert isinstance(ops, DecodeOps)
    rows = [4, 0, 2, 3, SPARE, SPARE]
    slots = torch.tensor(rows, device=device)
    inputs = ops.decode_inputs(slots, state, BLOCK_SIZE)
    lengths, sampling = state.length.tolist(), state.sampling
    for row, slot in enumerate(rows):
        length, table = lengths[slot], state.block_table[slot]
        assert int(inputs.input_ids[row]) == int(state.next_input[slot, 0])
        assert int(inputs.positions[row]) == length
        assert int(inputs.seq_lens[row]) == length + 1
        cell = int(table[length // BLOCK_SIZE]) * BLOCK_SIZE + length % BLOCK_SIZE
        assert int(inputs.slot_mapping[row]) == (-1 if slot == SPARE else cell)
        num_blocks = length // BLOCK_SIZE + 1
        assert torch.equal(inputs.block_table[row, :num_blocks], table[:num_blocks])
        expected = 0.0 if slot == SPARE else float(sampling.temperature[slot])
        assert float(inputs.sampling.temperature[row]) == expected
    for name in ("top_k", "top_p", "min_p"):
        assert torch.equal(getattr(inputs.sampling, name), getattr(sampling, name)[slots]), name


@pytest.mark.parametrize("device", DEVICES)
def test_random_numbers_are_those_of_the_sampler(device: str) -> None:
    ops, state = TritonOps(), make_state(device)
    slots = torch.arange(NUM_SLOTS, device=device)
    expected = uniform(state.sampling.seeds[slots], state.length[slots] + 1).float()
    assert torch.equal(ops.decode_inputs(slots, state, BLOCK_SIZE).sampling.uniform, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_only_real_slots_move_on(device: str) -> None:
    ops, state = TritonOps(), make_state(device)
    length, next_input = snapshot(state)
    slots = torch.tensor([3, SPARE, 1, SPARE], device=device)
    tokens = torch.tensor([41, 99, 43, 99], device=device)
    out = torch.full((4,), -1, dtype=torch.int32, device=device)
    ops.decode_advance(slots, state, tokens, out)
    length[[3, 1]] += 1
    next_input[3, 0], next_input[1, 0] = 41, 43
    assert out.tolist() == [41, 99, 43, 99]
    assert torch.equal(state.length, length)
    assert torch.equal(state.next_input, next_input)


@pytest.mark.parametrize("device", DEVICES)
def test_temperature_zero_is_greedy_beside_random_rows(device: str) -> None:
    logits = torch.randn(3, 5000, device=device)
    temperature = torch.tensor([0.0, 1.0, 0.0], device=device)
    number = torch.tensor([0.9, 0.999, 0.1], device=device)
    off = torch.zeros(3, device=device)
    rows = SamplingRows(temperature, off, off + 1, off, number)
    tokens = TritonOps().sample(logits, rows, Filters())
    sums = torch.softmax(logits[1].double(), 0).cumsum(0)
    assert tokens[[0, 2]].tolist() == logits.argmax(1)[[0, 2]].tolist()
    assert abs(float(sums[tokens[1]]) - 0.999) < 1e-3

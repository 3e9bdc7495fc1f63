"""The kernels around the model in a captured step with prompts, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.triton_harness import DEVICES
from pagemill.ops.decode import DecodeState
from pagemill.ops.packed import PackedOps, PackedRows
from pagemill.ops.triton.ops import TritonOps
from unit.runner.graph_harness import TorchPacked

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
    return DecodeState(length, next_input, table, columns[:, 2], seeds)


def make_rows(
    slots: list[int], num_query: list[int], samples: list[int], known: list[int], device: str,
    num_rows: int, num_tokens: int,
) -> PackedRows:  # fmt: skip
    """`known` are the ids of all tokens, -1 for those of the slots."""
    n, total = len(slots), sum(num_query)
    padding = num_rows - n
    starts = np.concatenate([[0], np.cumsum(num_query), [total] * padding])
    token_rows = np.repeat(np.arange(n), num_query).tolist() + [-1] * (num_tokens - total)
    fields = (
        slots + [SPARE] * padding,
        starts.tolist(),
        samples + [0] * padding,
        token_rows,
        known + [-1] * (num_tokens - total),
    )
    return PackedRows(*(torch.tensor(f, dtype=torch.int32, device=device) for f in fields))


def some_rows(device: str, num_rows: int = 8, num_tokens: int = 300) -> PackedRows:
    """A chunk, a row that generates, one known token, a long prompt, one more that generates."""
    slots, num_query = [4, 1, 0, 5, 3], [37, 1, 1, 200, 1]
    known = [*range(37), -1, 9, *range(500, 700), -1]
    return make_rows(slots, num_query, [0, 1, 1, 1, 1], known, device, num_rows, num_tokens)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(8, 300), (5, 240), (32, 512)])
def test_inputs_are_those_of_the_rows(device: str, size: tuple[int, int]) -> None:
    ops, state = TritonOps(), make_state(device)
    assert isinstance(ops, PackedOps)
    rows = some_rows(device, *size)
    found = ops.packed_inputs(rows, state, BLOCK_SIZE)
    expected = TorchPacked().packed_inputs(rows, state, BLOCK_SIZE)
    for name in ("input_ids", "positions", "slot_mapping", "seq_lens", "last_tokens"):
        assert getattr(found, name).dtype == getattr(expected, name).dtype
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.temperature, expected.temperature)
    assert torch.equal(found.uniform, expected.uniform.float())
    for row, seq_len in enumerate(expected.seq_lens.tolist()):
        used = -(-seq_len // BLOCK_SIZE)
        assert torch.equal(found.block_table[row, :used], expected.block_table[row, :used])


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_of_padding_alone(device: str) -> None:
    ops, state = TritonOps(), make_state(device)
    rows = make_rows([], [], [], [], device, 3, 128)
    inputs = ops.packed_inputs(rows, state, BLOCK_SIZE)
    assert (inputs.slot_mapping == -1).all() and not inputs.input_ids.any()
    assert not inputs.positions.any() and not inputs.seq_lens.any() and not inputs.last_tokens.any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_rows", [5, 8, 130])
def test_only_real_slots_move_on(device: str, num_rows: int) -> None:
    state, expected = make_state(device), make_state(device)
    rows = some_rows(device, num_rows)
    tokens = torch.arange(100, 100 + num_rows, device=device)
    out = torch.full((num_rows,), -1, dtype=torch.int32, device=device)
    TritonOps().packed_advance(rows, state, tokens, out)
    assert out[:5].tolist() == [0, 101, 102, 103, 104] and not out[5:].any()
    TorchPacked().packed_advance(rows, expected, tokens, torch.empty_like(out))
    assert torch.equal(state.length, expected.length)
    assert torch.equal(state.next_input, expected.next_input)
    assert state.length.tolist() == [1, 4, 4, 6, 2537, 277, 0]

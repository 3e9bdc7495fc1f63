"""What a captured step with prompts does around the model: look inputs up, move the slots on."""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.ops.decode import DecodeState
from pagemill.ops.packed import PackedInputs, PackedRows
from pagemill.ops.triton.launch import cdiv, supports_pdl, wait_for_inputs
from pagemill.ops.triton.random import uniform

TOKENS_TILE = 128
TABLE_TILE = 512
ROWS_TILE = 128


@triton.jit(do_not_specialize=["num_tokens", "input_stride", "table_stride"])
def _tokens_kernel(
    slots_ptr, query_start_ptr, token_rows_ptr, known_ptr, length_ptr, next_input_ptr, table_ptr,
    input_ids_ptr, positions_ptr, slot_mapping_ptr, num_tokens, input_stride, table_stride,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Token id, position and cell of the cache of each token."""
    wait_for_inputs(PDL)
    tokens = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = tokens < num_tokens
    rows = tl.load(token_rows_ptr + tokens, mask=there, other=-1)
    real = rows >= 0
    slots = tl.load(slots_ptr + rows, mask=real, other=0).to(tl.int64)
    offset = tokens - tl.load(query_start_ptr + rows, mask=real, other=0)
    length = tl.load(length_ptr + slots, mask=real, other=0)
    positions = tl.where(real, length + offset, 0)
    at = slots * table_stride + positions // BLOCK_SIZE
    block = tl.load(table_ptr + at, mask=real, other=0).to(tl.int64)
    cells = block * BLOCK_SIZE + positions % BLOCK_SIZE
    known = tl.load(known_ptr + tokens, mask=real, other=0).to(tl.int64)
    last = tl.load(next_input_ptr + slots * input_stride, mask=real & (known < 0), other=0)
    tl.store(input_ids_ptr + tokens, tl.where(known < 0, last, known), mask=there)
    tl.store(positions_ptr + tokens, positions, mask=there)
    tl.store(slot_mapping_ptr + tokens, tl.where(real, cells, -1), mask=there)


@triton.jit(do_not_specialize=["spare", "table_stride", "out_table_stride"])
def _rows_kernel(
    slots_ptr, query_start_ptr, length_ptr, table_ptr, temperature_ptr, seeds_ptr, seq_lens_ptr,
    last_tokens_ptr, out_table_ptr, out_temperature_ptr, uniform_ptr, spare, table_stride,
    temperature_stride, out_table_stride, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Length, pages, temperature and random number of each row."""
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    begin, end = tl.load(query_start_ptr + row), tl.load(query_start_ptr + row + 1)
    seq_len = tl.load(length_ptr + slot) + (end - begin)
    tl.store(seq_lens_ptr + row, seq_len.to(tl.int32))
    tl.store(last_tokens_ptr + row, tl.maximum(end - 1, 0).to(tl.int64))
    temperature = tl.load(temperature_ptr + slot * temperature_stride)
    tl.store(out_temperature_ptr + row, tl.where(slot == spare, 0.0, temperature))
    # Vectors of one, since the interpreter checks Python's own numbers for overflow.
    one = tl.arange(0, 1)
    number = uniform(tl.load(seeds_ptr + slot + one), seq_len + one)
    tl.store(uniform_ptr + row + one, number)
    num_blocks = (seq_len + BLOCK_SIZE - 1) // BLOCK_SIZE
    own_table_ptr = table_ptr + slot * table_stride
    for first in range(0, num_blocks, TILE):
        at = first + tl.arange(0, TILE)
        entries = tl.load(own_table_ptr + at, mask=at < num_blocks, other=0)
        tl.store(out_table_ptr + row * out_table_stride + at, entries, mask=at < num_blocks)


@triton.jit(do_not_specialize=["spare", "input_stride", "num_rows"])
def _advance_kernel(
    slots_ptr, query_start_ptr, samples_ptr, length_ptr, next_input_ptr, tokens_ptr, out_ptr,
    spare, input_stride, num_rows, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = rows < num_rows
    slots = tl.load(slots_ptr + rows, mask=there, other=0).to(tl.int64)
    begin = tl.load(query_start_ptr + rows, mask=there, other=0)
    end = tl.load(query_start_ptr + rows + 1, mask=there, other=0)
    samples = tl.load(samples_ptr + rows, mask=there, other=0)
    tokens = tl.where(samples != 0, tl.load(tokens_ptr + rows, mask=there, other=0), 0)
    tl.store(out_ptr + rows, tokens.to(tl.int32), mask=there)
    moves = there & (slots != spare)
    length = tl.load(length_ptr + slots, mask=moves, other=0)
    tl.store(length_ptr + slots, length + (end - begin), mask=moves)
    tl.store(next_input_ptr + slots * input_stride, tokens, mask=moves)


def packed_inputs(rows: PackedRows, state: DecodeState, block_size: int) -> PackedInputs:
    """`PackedOps.packed_inputs`."""
    num_rows, num_tokens, device = len(rows.slots), len(rows.token_rows), rows.slots.device
    max_blocks = state.block_table.shape[1]
    longs = torch.empty(3, num_tokens, dtype=torch.int64, device=device)
    floats = torch.empty(2, num_rows, device=device)
    inputs = PackedInputs(
        input_ids=longs[0],
        positions=longs[1],
        slot_mapping=longs[2],
        seq_lens=torch.empty(num_rows, dtype=torch.int32, device=device),
        block_table=torch.empty(num_rows, max_blocks, dtype=torch.int32, device=device),
        last_tokens=torch.empty(num_rows, dtype=torch.int64, device=device),
        temperature=floats[0],
        uniform=floats[1],
    )
    pdl = supports_pdl(rows.slots)
    _tokens_kernel[(cdiv(num_tokens, TOKENS_TILE),)](
        rows.slots, rows.query_start, rows.token_rows, rows.known, state.length, state.next_input,
        state.block_table, inputs.input_ids, inputs.positions, inputs.slot_mapping, num_tokens,
        state.next_input.stride(0), state.block_table.stride(0), BLOCK_SIZE=block_size,
        TILE=TOKENS_TILE, PDL=pdl, launch_pdl=pdl,
    )  # fmt: skip
    _rows_kernel[(num_rows,)](
        rows.slots, rows.query_start, state.length, state.block_table, state.temperature,
        state.seeds, inputs.seq_lens, inputs.last_tokens, inputs.block_table, inputs.temperature,
        inputs.uniform, len(state.length) - 1, state.block_table.stride(0),
        state.temperature.stride(0), inputs.block_table.stride(0), BLOCK_SIZE=block_size,
        TILE=TABLE_TILE, PDL=pdl, launch_pdl=pdl,
    )  # fmt: skip
    return inputs


def packed_advance(rows: PackedRows, state: DecodeState, tokens: Tensor, out: Tensor) -> None:
    """`PackedOps.packed_advance`."""
    num_rows, pdl = len(rows.slots), supports_pdl(rows.slots)
    _advance_kernel[(cdiv(num_rows, ROWS_TILE),)](
        rows.slots, rows.query_start, rows.samples, state.length, state.next_input, tokens, out,
        len(state.length) - 1, state.next_input.stride(0), num_rows, TILE=ROWS_TILE, PDL=pdl,
        launch_pdl=pdl,
    )  # fmt: skip

"""What a decode step does around the model: look its inputs up, and move the slots on."""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.ops.decode import DecodeInputs, DecodeState
from pagemill.ops.sampling import SamplingRows
from pagemill.ops.triton.launch import supports_pdl, wait_for_inputs
from pagemill.ops.triton.sampling_rows import copy_sampling, empty_rows

TABLE_TILE = 512
ADVANCE_TILE = 128


@triton.jit(do_not_specialize=["sampling_out_stride"])
def _decode_inputs_kernel(
    slots_ptr, length_ptr, next_input_ptr, table_ptr, temperature_ptr, top_k_ptr, top_p_ptr,
    min_p_ptr, seeds_ptr, input_ids_ptr, positions_ptr, slot_mapping_ptr, seq_lens_ptr,
    out_table_ptr, sampling_ptr, spare, input_stride, table_stride, sampling_stride,
    out_table_stride, sampling_out_stride, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    position = tl.load(length_ptr + slot)
    own_table_ptr = table_ptr + slot * table_stride
    block = tl.load(own_table_ptr + position // BLOCK_SIZE).to(tl.int64)
    cell = block * BLOCK_SIZE + position % BLOCK_SIZE
    tl.store(slot_mapping_ptr + row, tl.where(slot == spare, -1, cell))
    tl.store(input_ids_ptr + row, tl.load(next_input_ptr + slot * input_stride))
    tl.store(positions_ptr + row, position)
    tl.store(seq_lens_ptr + row, (position + 1).to(tl.int32))
    # Vectors of one, since the interpreter checks Python's own numbers for overflow.
    one = tl.arange(0, 1)
    slots = slot + one
    copy_sampling(
        row + one, slots, position + 1 + one, one == 0, slots != spare, temperature_ptr, top_k_ptr,
        top_p_ptr, min_p_ptr, seeds_ptr, sampling_stride, sampling_ptr, sampling_out_stride,
    )  # fmt: skip
    num_blocks = position // BLOCK_SIZE + 1
    for first in range(0, num_blocks, TILE):
        at = first + tl.arange(0, TILE)
        entries = tl.load(own_table_ptr + at, mask=at < num_blocks, other=0)
        tl.store(out_table_ptr + row * out_table_stride + at, entries, mask=at < num_blocks)


@triton.jit(do_not_specialize=["num_rows"])
def _decode_advance_kernel(
    slots_ptr, length_ptr, next_input_ptr, tokens_ptr, out_ptr, spare, input_stride, num_rows,
    TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = rows < num_rows
    slots = tl.load(slots_ptr + rows, mask=there, other=0)
    tokens = tl.load(tokens_ptr + rows, mask=there, other=0)
    tl.store(out_ptr + rows, tokens.to(tl.int32), mask=there)
    moves = there & (slots != spare)
    length = tl.load(length_ptr + slots, mask=moves, other=0)
    tl.store(length_ptr + slots, length + 1, mask=moves)
    tl.store(next_input_ptr + slots * input_stride, tokens, mask=moves)


def decode_inputs(slots: Tensor, state: DecodeState, block_size: int) -> DecodeInputs:
    """`DecodeOps.decode_inputs`."""
    num_rows, device = len(slots), slots.device
    longs = torch.empty(3, num_rows, dtype=torch.int64, device=device)
    rows, sampling = empty_rows(num_rows, device), state.sampling
    inputs = DecodeInputs(
        input_ids=longs[0],
        positions=longs[1],
        slot_mapping=longs[2],
        seq_lens=torch.empty(num_rows, dtype=torch.int32, device=device),
        block_table=torch.empty(
            num_rows, state.block_table.shape[1], dtype=torch.int32, device=device
        ),
        sampling=SamplingRows(*rows[:, :num_rows]),
    )
    pdl = supports_pdl(slots)
    _decode_inputs_kernel[(num_rows,)](
        slots, state.length, state.next_input, state.block_table, sampling.temperature,
        sampling.top_k, sampling.top_p, sampling.min_p, sampling.seeds, inputs.input_ids,
        inputs.positions, inputs.slot_mapping, inputs.seq_lens, inputs.block_table, rows,
        len(state.length) - 1, state.next_input.stride(0), state.block_table.stride(0),
        sampling.temperature.stride(0), inputs.block_table.stride(0), rows.stride(0),
        BLOCK_SIZE=block_size, TILE=TABLE_TILE, PDL=pdl, launch_pdl=pdl,
    )  # fmt: skip
    return inputs


def decode_advance(slots: Tensor, state: DecodeState, tokens: Tensor, out: Tensor) -> None:
    """`DecodeOps.decode_advance`."""
    num_rows, pdl = len(slots), supports_pdl(slots)
    _decode_advance_kernel[(triton.cdiv(num_rows, ADVANCE_TILE),)](
        slots, state.length, state.next_input, tokens, out, len(state.length) - 1,
        state.next_input.stride(0), num_rows, TILE=ADVANCE_TILE, PDL=pdl, launch_pdl=pdl,
    )  # fmt: skip

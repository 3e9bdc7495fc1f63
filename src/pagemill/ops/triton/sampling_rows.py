"""How the rows of a step sample, looked up by slot, with a random number for each."""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.ops.sampling import SamplingRows, SlotSampling
from pagemill.ops.triton.helper import helper
from pagemill.ops.triton.launch import cdiv, supports_pdl, wait_for_inputs
from pagemill.ops.triton.random import uniform

ROWS_TILE = 128


@helper
def copy_sampling(
    rows, slots, index, there, real, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seeds_ptr,
    stride, out_ptr, out_stride,
):  # fmt: skip
    """Write the rows that are `there` of `empty_rows`; those that are not `real` are greedy."""
    at = slots * stride
    out_ptr += rows
    temperature = tl.load(temperature_ptr + at, mask=there & real, other=0.0)
    tl.store(out_ptr, temperature, mask=there)
    tl.store(out_ptr + out_stride, tl.load(top_k_ptr + at, mask=there, other=0.0), mask=there)
    tl.store(out_ptr + 2 * out_stride, tl.load(top_p_ptr + at, mask=there, other=0.0), mask=there)
    tl.store(out_ptr + 3 * out_stride, tl.load(min_p_ptr + at, mask=there, other=0.0), mask=there)
    number = uniform(tl.load(seeds_ptr + slots, mask=there, other=0), index)
    tl.store(out_ptr + 4 * out_stride, number, mask=there)


@triton.jit(do_not_specialize=["num_rows", "out_stride"])
def _rows_kernel(
    slots_ptr, index_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seeds_ptr, out_ptr,
    stride, out_stride, num_rows, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = rows < num_rows
    slots = tl.load(slots_ptr + rows, mask=there, other=0)
    index = tl.load(index_ptr + rows, mask=there, other=0)
    copy_sampling(
        rows, slots, index, there, there, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr,
        seeds_ptr, stride, out_ptr, out_stride,
    )  # fmt: skip


def empty_rows(num_rows: int, device: torch.device) -> Tensor:
    """Room for the fields of `SamplingRows`, [5, num_rows or more], every one aligned alike."""
    return torch.empty(5, cdiv(num_rows, ROWS_TILE) * ROWS_TILE, device=device)


def sampling_rows(slots: Tensor, index: Tensor, state: SlotSampling) -> SamplingRows:
    """`SamplingOps.sampling_rows`."""
    num_rows, pdl = len(slots), supports_pdl(slots)
    out = empty_rows(num_rows, slots.device)
    _rows_kernel[(cdiv(num_rows, ROWS_TILE),)](
        slots, index, state.temperature, state.top_k, state.top_p, state.min_p, state.seeds, out,
        state.temperature.stride(0), out.stride(0), num_rows, TILE=ROWS_TILE, PDL=pdl,
        launch_pdl=pdl,
    )  # fmt: skip
    return SamplingRows(*out[:, :num_rows])

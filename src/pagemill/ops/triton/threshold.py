"""The least logit that top-k and top-p keep, found without a sort by many programs a row.

Both keep the logits above some value. An interval that holds it is narrowed in passes: the programs
of a row count, and for top-p weigh, the logits above `VALUES` evenly spaced values of the interval,
each over its part of the vocabulary; the last one to arrive adds up and picks the part of the
interval that goes on. A row whose interval holds one logit is done, and later passes skip it.
"""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.ops.sampling import Filters, SamplingRows
from pagemill.ops.triton.helper import helper
from pagemill.ops.triton.launch import cdiv, next_power_of_2, supports_pdl, wait_for_inputs

TILE = 8192  # logits of a program
VALUES = 16
# After these the interval is 40 temperatures / 16^passes wide: 4e-5 and 2e-6 of them.
PASSES = 5
PASSES_FLOAT32 = 6
# Logits this many temperatures below the best have no weight in float32: e^-40 = 4e-18.
RANGE = tl.constexpr(40.0)
# What is kept of a row between passes.
LOW, HIGH, COUNT_HIGH, WANTED, DONE = (tl.constexpr(i) for i in range(5))
STATE_SIZE = 5


@helper
def _start(best, temperature, min_p):
    """The interval that holds all logits with any weight: from `low`, and before `high`."""
    low = best - RANGE * temperature
    if min_p > 0:
        low = tl.maximum(low, best + tl.log(min_p) * temperature)
    return low, best + tl.maximum(tl.abs(best) * 1e-6, 1e-6)


@triton.jit
def _start_kernel(
    max_ptr, state_ptr, temperature_ptr, min_p_ptr, num_chunks, BLOCK_CHUNKS: tl.constexpr,
    NUM_STATE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """What min-p alone keeps."""
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, BLOCK_CHUNKS)
    there = chunks < num_chunks
    maxima = tl.load(max_ptr + row * num_chunks + chunks, mask=there, other=float("-inf"))
    temperature = tl.load(temperature_ptr + row)
    low, high = _start(tl.max(maxima, axis=0), temperature, tl.load(min_p_ptr + row))
    tl.store(state_ptr + row * NUM_STATE + LOW, low)
    tl.store(state_ptr + row * NUM_STATE + HIGH, high)


@helper
def _narrow(
    state_ptr, counts, masses, low, step, limit, count_limit, wanted, first, index,
    BY_MASS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Keep the part of the interval at whose start there still is enough, and at its end not.

    Counts and masses [VALUES] are those at or above the start of each part; `count_limit` is the
    count at the end of the interval.
    """
    if BY_MASS:
        if first != 0:  # a share of all that is left
            wanted = wanted * tl.sum(tl.where(index == 0, masses, 0.0), axis=0)
        enough = masses >= wanted
    else:
        enough = counts >= wanted
    last = tl.max(tl.where(enough, index, 0), axis=0)
    count_low = tl.sum(tl.where(index == last, counts, 0.0), axis=0)
    count_next = tl.sum(tl.where(index == last + 1, counts, 0.0), axis=0)
    count_high = tl.where(last == VALUES - 1, count_limit, count_next)
    high = tl.where(last == VALUES - 1, limit, low + step * (last + 1))
    done = count_low - count_high <= 1
    if not BY_MASS:
        done = done | (count_low == wanted)
    tl.store(state_ptr + LOW, low + step * last)
    tl.store(state_ptr + HIGH, high)
    tl.store(state_ptr + COUNT_HIGH, count_high)
    tl.store(state_ptr + WANTED, wanted)
    tl.store(state_ptr + DONE, done.to(tl.float32))


@triton.jit(do_not_specialize=["first"])
def _narrow_kernel(
    logits_ptr, best_ptr, state_ptr, partial_ptr, counter_ptr, temperature_ptr, share_ptr,
    stride, width, num_chunks, num_programs, first, BLOCK_CHUNKS: tl.constexpr,
    BLOCK_PROGRAMS: tl.constexpr, TILE: tl.constexpr, VALUES: tl.constexpr,
    NUM_STATE: tl.constexpr, BY_MASS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    state_ptr += row * NUM_STATE
    temperature = tl.load(temperature_ptr + row)
    share = tl.load(share_ptr + row).to(tl.float32)
    used = share < 1.0 if BY_MASS else (share > 0) & (share < width)
    active = (temperature > 0) & used
    active = active & ((first != 0) | (tl.load(state_ptr + DONE) == 0))
    if not active:
        return
    low, high = tl.load(state_ptr + LOW), tl.load(state_ptr + HIGH)
    chunks = tl.arange(0, BLOCK_CHUNKS)
    best_at = best_ptr + row * num_chunks + chunks
    best = tl.max(tl.load(best_at, mask=chunks < num_chunks, other=float("-inf")), axis=0)
    count_high = tl.load(state_ptr + COUNT_HIGH)
    wanted = tl.load(state_ptr + WANTED)
    if first != 0:
        _, high = _start(best, temperature, 0.0)  # top-k may have left another
        count_high = 0.0
        wanted = share
    step = (high - low) / VALUES
    index = part * TILE + tl.arange(0, TILE)
    x = tl.load(logits_ptr + row * stride + index, mask=index < width, other=float("-inf"))
    x = x.to(tl.float32)
    weight = x
    if BY_MASS:
        weight = tl.exp((x - best) / temperature)
    own_ptr = partial_ptr + (row * num_programs + part) * 2 * VALUES
    for number in range(VALUES):  # not unrolled: compiled in a third of the time
        above = x >= low + step * number
        tl.store(own_ptr + number, tl.sum(above.to(tl.float32), axis=0))
        if BY_MASS:
            tl.store(own_ptr + VALUES + number, tl.sum(tl.where(above, weight, 0.0), axis=0))
    tl.debug_barrier()  # every thread's stores come before the release below
    arrived = tl.atomic_add(counter_ptr + row, 1, sem="acq_rel", scope="gpu")
    if arrived == num_programs - 1:
        tl.store(counter_ptr + row, 0)
        numbers, programs = tl.arange(0, VALUES), tl.arange(0, BLOCK_PROGRAMS)
        row_ptr = partial_ptr + row * num_programs * 2 * VALUES
        at = row_ptr + programs[:, None] * 2 * VALUES + numbers[None, :]
        there = (programs < num_programs)[:, None]
        counts = tl.sum(tl.load(at, mask=there, other=0.0, cache_modifier=".cg"), axis=0)
        masses = counts
        if BY_MASS:
            masses = tl.load(at + VALUES, mask=there, other=0.0, cache_modifier=".cg")
            masses = tl.sum(masses, axis=0)
        _narrow(
            state_ptr, counts, masses, low, step, high, count_high, wanted, first, numbers, BY_MASS,
            VALUES,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RowMaxima:
    """The greatest logit of each chunk of each row."""

    values: Tensor  # [n, chunks] float32
    num_chunks: int
    block_chunks: int


def thresholds(
    logits: Tensor, maxima: RowMaxima, rows: SamplingRows, filters: Filters, counters: Tensor
) -> Tensor:
    """The least logit kept of each row of logits [n, V], float32 [n], `STATE_SIZE` apart.

    `counters` are int32 zeros [n] and are left so. Rows of temperature 0 get some value.
    """
    num_rows, pdl = logits.shape[0], supports_pdl(logits)
    state = torch.empty(num_rows, STATE_SIZE, device=logits.device)
    _start_kernel[(num_rows,)](
        maxima.values, state, rows.temperature, rows.min_p, maxima.num_chunks,
        BLOCK_CHUNKS=maxima.block_chunks, NUM_STATE=STATE_SIZE, PDL=pdl, launch_pdl=pdl,
    )  # fmt: skip
    if filters.top_k:
        _search(logits, maxima, rows, rows.top_k, state, counters, by_mass=False)
    if filters.top_p:
        _search(logits, maxima, rows, rows.top_p, state, counters, by_mass=True)
    return state[:, 0]


def _search(
    logits: Tensor,
    maxima: RowMaxima,
    rows: SamplingRows,
    share: Tensor,
    state: Tensor,
    counters: Tensor,
    by_mass: bool,
) -> None:
    num_rows, width = logits.shape
    num_programs, pdl = cdiv(width, TILE), supports_pdl(logits)
    partial = torch.empty(num_rows, num_programs, 2, VALUES, device=logits.device)
    passes = PASSES_FLOAT32 if logits.dtype == torch.float32 else PASSES
    for number in range(passes):
        _narrow_kernel[(num_rows, num_programs)](
            logits, maxima.values, state, partial, counters, rows.temperature, share,
            logits.stride(0), width, maxima.num_chunks, num_programs, int(number == 0),
            BLOCK_CHUNKS=maxima.block_chunks, BLOCK_PROGRAMS=next_power_of_2(num_programs),
            TILE=TILE, VALUES=VALUES, NUM_STATE=STATE_SIZE, BY_MASS=by_mass,
            PDL=pdl, num_warps=8, launch_pdl=pdl,
        )  # fmt: skip

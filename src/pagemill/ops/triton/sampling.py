"""Sampling from logits without a sort: chunked statistics, a threshold search, and one scan.

A row's vocabulary is cut into chunks that are summed in parallel. Top-k, top-p and min-p all keep
the logits above some threshold (`threshold.py`). The token is then the first whose running
probability, in vocabulary order, passes the row's uniform number (inverse transform sampling), so a
row's result depends on that row alone.
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
from pagemill.ops.triton.threshold import STATE_SIZE, RowMaxima, thresholds

CHUNK = 4096
NO_TOKEN = tl.constexpr(2147483647)
THRESHOLD_STRIDE = tl.constexpr(STATE_SIZE)


@triton.jit
def _chunk_stats_kernel(
    logits_ptr, max_ptr, argmax_ptr, stride, width, num_chunks, CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Greatest logit of each chunk and its first place."""
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    index = chunk * CHUNK + tl.arange(0, CHUNK)
    logits_ptr += row * stride
    x = tl.load(logits_ptr + index, mask=index < width, other=float("-inf")).to(tl.float32)
    best = tl.max(x, axis=0)
    place = tl.min(tl.where(x == best, index, NO_TOKEN), axis=0)
    tl.store(max_ptr + row * num_chunks + chunk, best)
    tl.store(argmax_ptr + row * num_chunks + chunk, tl.minimum(place, width - 1))


@triton.jit
def _chunk_mass_kernel(
    logits_ptr, max_ptr, mass_ptr, threshold_ptr, temperature_ptr, stride, width, num_chunks,
    CHUNK: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, TRUNCATE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The weight that each chunk keeps, relative to the row's best token."""
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    weight = _kept_weights(
        logits_ptr + row * stride, max_ptr + row * num_chunks, threshold_ptr, row,
        tl.load(temperature_ptr + row), chunk, width, num_chunks, CHUNK, BLOCK_CHUNKS, TRUNCATE,
    )  # fmt: skip
    tl.store(mass_ptr + row * num_chunks + chunk, tl.sum(weight, axis=0))


@helper
def _kept_weights(
    logits_ptr, max_ptr, threshold_ptr, row, temperature, chunk, width, num_chunks,
    CHUNK: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, TRUNCATE: tl.constexpr,
):  # fmt: skip
    """Unnormalised probabilities of one chunk's tokens; zero where they are cut off."""
    chunks = tl.arange(0, BLOCK_CHUNKS)
    maxima = tl.load(max_ptr + chunks, mask=chunks < num_chunks, other=float("-inf"))
    best = tl.max(maxima, axis=0)
    index = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + index, mask=index < width, other=float("-inf")).to(tl.float32)
    weight = tl.exp((x - best) / tl.where(temperature > 0, temperature, 1.0))
    if TRUNCATE:
        weight = tl.where(x >= tl.load(threshold_ptr + row * THRESHOLD_STRIDE), weight, 0.0)
    return weight


@triton.jit
def _pick_kernel(
    logits_ptr, max_ptr, argmax_ptr, mass_ptr, threshold_ptr, temperature_ptr, uniform_ptr,
    out_ptr, stride, width, num_chunks, CHUNK: tl.constexpr, BLOCK_CHUNKS: tl.constexpr,
    SAMPLE: tl.constexpr, TRUNCATE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, BLOCK_CHUNKS)
    there = chunks < num_chunks
    own = row * num_chunks
    maxima = tl.load(max_ptr + own + chunks, mask=there, other=float("-inf"))
    best = tl.max(maxima, axis=0)
    winner = tl.min(tl.where(there & (maxima == best), chunks, BLOCK_CHUNKS - 1), axis=0)
    token = tl.load(argmax_ptr + own + tl.minimum(winner, num_chunks - 1))
    if SAMPLE:
        temperature = tl.load(temperature_ptr + row)
        if temperature > 0:
            masses = tl.load(mass_ptr + own + chunks, mask=there, other=0.0)
            running = tl.cumsum(masses, axis=0)
            target = tl.load(uniform_ptr + row) * tl.sum(masses, axis=0)
            passing = (running > target) & (masses > 0)
            last = tl.max(tl.where(masses > 0, chunks, 0), axis=0)
            chunk = tl.min(tl.where(passing, chunks, last), axis=0)
            before = tl.sum(tl.where(chunks < chunk, masses, 0.0), axis=0)
            weight = _kept_weights(
                logits_ptr + row * stride, max_ptr + own, threshold_ptr, row, temperature, chunk,
                width, num_chunks, CHUNK, BLOCK_CHUNKS, TRUNCATE,
            )  # fmt: skip
            index = tl.arange(0, CHUNK)
            passing = (before + tl.cumsum(weight, axis=0) > target) & (weight > 0)
            last = tl.max(tl.where(weight > 0, index, 0), axis=0)
            token = chunk * CHUNK + tl.min(tl.where(passing, index, last), axis=0)
    tl.store(out_ptr + row, token.to(tl.int64))


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Per-chunk statistics of a batch of rows, and the launch shapes that go with them."""

    maxima: Tensor  # [n, chunks] float32
    places: Tensor  # [n, chunks] int32
    num_chunks: int
    block_chunks: int
    pdl: bool


def _chunk_stats(logits: Tensor) -> _Scratch:
    num_rows, width = logits.shape
    num_chunks = cdiv(width, CHUNK)
    maxima = torch.empty(num_rows, num_chunks, dtype=torch.float32, device=logits.device)
    places = torch.empty(num_rows, num_chunks, dtype=torch.int32, device=logits.device)
    pdl = supports_pdl(logits)
    _chunk_stats_kernel[(num_rows, num_chunks)](
        logits, maxima, places, logits.stride(0), width, num_chunks,
        CHUNK=CHUNK, PDL=pdl, launch_pdl=pdl,
    )  # fmt: skip
    return _Scratch(maxima, places, num_chunks, next_power_of_2(num_chunks), pdl)


def _pick(
    logits: Tensor,
    scratch: _Scratch,
    temperature: Tensor | None,
    uniform: Tensor | None,
    masses: Tensor | None,
    threshold: Tensor | None,
) -> Tensor:
    out = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    _pick_kernel[(logits.shape[0],)](
        logits, scratch.maxima, scratch.places, masses, threshold,
        temperature, uniform, out, logits.stride(0), logits.shape[1], scratch.num_chunks,
        CHUNK=CHUNK, BLOCK_CHUNKS=scratch.block_chunks, SAMPLE=temperature is not None,
        TRUNCATE=threshold is not None, PDL=scratch.pdl, launch_pdl=scratch.pdl,
    )  # fmt: skip
    return out


def argmax(logits: Tensor) -> Tensor:
    """The first greatest entry of each row of logits [n, V] -> [n] int64."""
    if logits.shape[0] == 0:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    return _pick(logits, _chunk_stats(logits), None, None, None, None)


def sample(logits: Tensor, rows: SamplingRows, filters: Filters, counters: Tensor) -> Tensor:
    """`DrawingOps.sample`; `counters` are int32 zeros, at least one a row, and are left so."""
    if logits.shape[0] == 0:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    scratch, threshold = _chunk_stats(logits), None
    if filters:
        maxima = RowMaxima(scratch.maxima, scratch.num_chunks, scratch.block_chunks)
        threshold = thresholds(logits, maxima, rows, filters, counters)
    return _draw(logits, scratch, rows, threshold)


def _draw(
    logits: Tensor,
    scratch: _Scratch,
    rows: SamplingRows,
    threshold: Tensor | None,
) -> Tensor:
    masses = torch.empty_like(scratch.maxima)
    _chunk_mass_kernel[(logits.shape[0], scratch.num_chunks)](
        logits, scratch.maxima, masses, threshold, rows.temperature, logits.stride(0),
        logits.shape[1], scratch.num_chunks, CHUNK=CHUNK, BLOCK_CHUNKS=scratch.block_chunks,
        TRUNCATE=threshold is not None, PDL=scratch.pdl, launch_pdl=scratch.pdl,
    )  # fmt: skip
    return _pick(logits, scratch, rows.temperature, rows.uniform, masses, threshold)

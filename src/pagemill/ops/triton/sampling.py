"""Sampling from logits without a sort: chunked statistics, a threshold search, and one scan.

A row's vocabulary is cut into chunks that are summed in parallel. Top-k, top-p and min-p all keep
the logits above some threshold, which is found by narrowing an interval: every pass counts and
weighs the tokens above three values inside it. The token is then the first whose running
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

from pagemill.ops.triton.launch import cdiv, next_power_of_2, supports_pdl, wait_for_inputs

CHUNK = 4096
SEARCH_TILE = 8192
# Logits this many temperatures below the best have no weight in float32: e^-40 = 4e-18.
RANGE = tl.constexpr(40.0)
NO_TOKEN = tl.constexpr(2147483647)


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """One value per row; float32 but for top_k. Zero temperature is greedy."""

    temperature: Tensor  # [n]
    top_k: Tensor  # [n] int32, 0: off
    top_p: Tensor  # [n] 1: off
    min_p: Tensor  # [n] 0: off
    uniform: Tensor  # [n] in [0, 1)


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
def _above(logits_ptr, width, a, b, c, best, inverse_t, TILE: tl.constexpr):
    """Counts and weights of the logits at or above each of three values."""
    count_a = tl.zeros((TILE,), tl.int32)
    count_b = tl.zeros((TILE,), tl.int32)
    count_c = tl.zeros((TILE,), tl.int32)
    mass_a = tl.zeros((TILE,), tl.float32)
    mass_b = tl.zeros((TILE,), tl.float32)
    mass_c = tl.zeros((TILE,), tl.float32)
    for first in range(0, width, TILE):
        index = first + tl.arange(0, TILE)
        x = tl.load(logits_ptr + index, mask=index < width, other=float("-inf")).to(tl.float32)
        weight = tl.exp((x - best) * inverse_t)
        count_a += (x >= a).to(tl.int32)
        count_b += (x >= b).to(tl.int32)
        count_c += (x >= c).to(tl.int32)
        mass_a += tl.where(x >= a, weight, 0.0)
        mass_b += tl.where(x >= b, weight, 0.0)
        mass_c += tl.where(x >= c, weight, 0.0)
    return (
        tl.sum(count_a, axis=0), tl.sum(count_b, axis=0), tl.sum(count_c, axis=0),
        tl.sum(mass_a, axis=0), tl.sum(mass_b, axis=0), tl.sum(mass_c, axis=0),
    )  # fmt: skip


@triton.jit
def _search(
    logits_ptr, width, low, high, best, inverse_t, wanted, BY_MASS: tl.constexpr, TILE: tl.constexpr
):
    """The greatest value with at least `wanted` tokens (or weight) at or above it, within `low`..

    Also the weight at or above it. `low` is the answer when even it has too little.
    """
    count_low, _, count_high, mass_low, _, mass_high = _above(
        logits_ptr, width, low, low, high, best, inverse_t, TILE
    )
    enough_high = mass_high >= wanted if BY_MASS else count_high >= wanted
    low = tl.where(enough_high, high, low)
    mass_low = tl.where(enough_high, mass_high, mass_low)
    searching = (count_low > count_high + 1) & (low < high)
    passes = 0
    while searching:
        step = (high - low) * 0.25
        a = low + step
        b = low + step * 2.0
        c = low + step * 3.0
        count_a, count_b, count_c, mass_a, mass_b, mass_c = _above(
            logits_ptr, width, a, b, c, best, inverse_t, TILE
        )
        if BY_MASS:
            enough_a = mass_a >= wanted
            enough_b = mass_b >= wanted
            enough_c = mass_c >= wanted
        else:
            enough_a = count_a >= wanted
            enough_b = count_b >= wanted
            enough_c = count_c >= wanted
        high = tl.where(enough_c, high, tl.where(enough_b, c, tl.where(enough_a, b, a)))
        count_high = tl.where(
            enough_c, count_high, tl.where(enough_b, count_c, tl.where(enough_a, count_b, count_a))
        )
        count_low = tl.where(
            enough_c, count_c, tl.where(enough_b, count_b, tl.where(enough_a, count_a, count_low))
        )
        mass_low = tl.where(
            enough_c, mass_c, tl.where(enough_b, mass_b, tl.where(enough_a, mass_a, mass_low))
        )
        low = tl.where(enough_c, c, tl.where(enough_b, b, tl.where(enough_a, a, low)))
        passes += 1
        # One token between the two, or no value: done. 32 passes exhaust a float32.
        searching = (count_low > count_high + 1) & (low < high) & (passes < 32)
    return low, mass_low


@triton.jit
def _threshold_kernel(
    logits_ptr, max_ptr, threshold_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr,
    stride, width, num_chunks, BLOCK_CHUNKS: tl.constexpr, TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The least logit that min-p, then top-k, then top-p of what they leave, keep."""
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, BLOCK_CHUNKS)
    maxima = tl.load(
        max_ptr + row * num_chunks + chunks, mask=chunks < num_chunks, other=float("-inf")
    )
    best = tl.max(maxima, axis=0)
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    threshold = best - RANGE * temperature
    if min_p > 0:
        threshold = tl.maximum(threshold, best + tl.log(min_p) * temperature)
    if temperature > 0:
        inverse_t = 1.0 / temperature
        logits_ptr += row * stride
        whole = float("inf")  # the weight above the threshold, where it is known
        if (top_k > 0) & (top_k < width):
            threshold, whole = _search(
                logits_ptr, width, threshold, best, best, inverse_t, top_k, False, TILE
            )
        if top_p < 1.0:
            if whole == float("inf"):
                _, _, _, whole, _, _ = _above(
                    logits_ptr, width, threshold, threshold, threshold, best, inverse_t, TILE
                )
            threshold, whole = _search(
                logits_ptr, width, threshold, best, best, inverse_t, top_p * whole, True, TILE
            )
    tl.store(threshold_ptr + row, threshold)


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


@triton.jit
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
        weight = tl.where(x >= tl.load(threshold_ptr + row), weight, 0.0)
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


def _thresholds(logits: Tensor, scratch: _Scratch, rows: SamplingRows) -> Tensor:
    threshold = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _threshold_kernel[(logits.shape[0],)](
        logits, scratch.maxima, threshold, rows.temperature, rows.top_k, rows.top_p, rows.min_p,
        logits.stride(0), logits.shape[1], scratch.num_chunks, BLOCK_CHUNKS=scratch.block_chunks,
        TILE=SEARCH_TILE, PDL=scratch.pdl, num_warps=16, launch_pdl=scratch.pdl,
    )  # fmt: skip
    return threshold


def sample(logits: Tensor, rows: SamplingRows, truncate: bool) -> Tensor:
    """One token per row of logits [n, V] -> [n] int64.

    Temperature, then min-p, top-k and top-p in that order, each on what the one before left;
    tokens that tie with the last one kept are kept. Without `truncate` those three are off for
    every row and their search is not launched.
    """
    if not truncate:
        return sample_by_temperature(logits, rows.temperature, rows.uniform)
    if logits.shape[0] == 0:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    scratch = _chunk_stats(logits)
    threshold = _thresholds(logits, scratch, rows)
    return _draw(logits, scratch, rows.temperature, rows.uniform, threshold)


def sample_by_temperature(logits: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
    """One token per row of logits [n, V] -> [n] int64; greedy where the temperature is 0."""
    if logits.shape[0] == 0:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    return _draw(logits, _chunk_stats(logits), temperature, uniform, None)


def _draw(
    logits: Tensor,
    scratch: _Scratch,
    temperature: Tensor,
    uniform: Tensor,
    threshold: Tensor | None,
) -> Tensor:
    masses = torch.empty_like(scratch.maxima)
    _chunk_mass_kernel[(logits.shape[0], scratch.num_chunks)](
        logits, scratch.maxima, masses, threshold, temperature, logits.stride(0),
        logits.shape[1], scratch.num_chunks, CHUNK=CHUNK, BLOCK_CHUNKS=scratch.block_chunks,
        TRUNCATE=threshold is not None, PDL=scratch.pdl, launch_pdl=scratch.pdl,
    )  # fmt: skip
    return _pick(logits, scratch, temperature, uniform, masses, threshold)

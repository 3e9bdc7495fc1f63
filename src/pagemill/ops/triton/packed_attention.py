"""Paged causal attention of packed rows with many queries: FlashAttention-2 (Dao, 2023).

A program's query tile holds the query heads of one kv head for a few neighbouring tokens of one
row, so each page is read once per group of heads. Rows are packed without padding: tile b belongs
to the last row i with `query_start[i] // BLOCK_Q + i <= b`, found by bisection, and the grid is the
bound `num_tokens // BLOCK_Q + num_seqs` that the host knows.
"""

# ruff: noqa: N803, N806 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.attention.base import AttentionSpec, ForwardBatch, LayerCache
from pagemill.ops.triton.attention_tile import LOWEST, attend
from pagemill.ops.triton.helper import helper
from pagemill.ops.triton.launch import (
    has_small_shared,
    next_power_of_2,
    supports_pdl,
    wait_for_inputs,
)

MAX_INT32 = 2**31 - 1  # above, offsets into the cache need 64 bits


@dataclass(frozen=True, slots=True)
class PackedConfig:
    """Tile shapes: `block_m` (token, head) pairs against `block_n` keys.

    Keys that only some of the tile's queries see are taken `block_tail` at a time. Pages are
    loaded after the table's entries, so only every second stage (3, 5, ..) adds a tile that is
    loaded ahead.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    block_tail: int = 32


def packed_config(
    head_dim: int, dtype: torch.dtype, hopper: bool = True, small_shared: bool = False
) -> PackedConfig:
    """The tile shapes that were fastest on Hopper; float32 is for checks, not for speed."""
    if dtype == torch.float32:
        return PackedConfig(32, 32, 4, 1)
    if head_dim > 128:
        return PackedConfig(64 if small_shared else 128, 32, 8, 3)
    return PackedConfig(128, 64, 4 if hopper else 8, 3)


@helper
def _row_of_tile(query_start_ptr, tile, num_seqs, BLOCK_Q: tl.constexpr):
    low = 0
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        first_tile = tl.load(query_start_ptr + middle) // BLOCK_Q + middle
        take = first_tile <= tile
        low = tl.where(take, middle, low)
        high = tl.where(take, high, middle)
    return low


@triton.jit(do_not_specialize=["num_seqs", "min_query_len", "table_stride", "window"])
def _packed_attention_kernel(
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    out_ptr,
    query_start_ptr,
    seq_lens_ptr,
    table_ptr,
    num_seqs,
    min_query_len,
    table_stride,
    block_stride,
    head_stride,
    scale,
    soft_cap,
    window,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LARGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    if LARGE:
        block_stride = block_stride.to(tl.int64)
    kv_head = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)  # late tiles have the most keys: first
    wait_for_inputs(PDL)
    seq = _row_of_tile(query_start_ptr, tile, num_seqs, BLOCK_Q)
    query_start = tl.load(query_start_ptr + seq)
    query_len = tl.load(query_start_ptr + seq + 1) - query_start
    first_query = (tile - (query_start // BLOCK_Q + seq)) * BLOCK_Q
    if first_query >= query_len or query_len < min_query_len:
        return
    seq_len = tl.load(seq_lens_ptr + seq)
    start = seq_len - query_len + first_query  # position of the tile's first query

    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    in_head = cols < HEAD_DIM
    in_tile = rows // GROUP  # which of the tile's tokens
    positions = start + in_tile
    live = (in_tile < BLOCK_Q) & (first_query + in_tile < query_len)
    tokens = (query_start + first_query + in_tile).to(tl.int64)
    at_q = (tokens * NUM_HEADS + kv_head * GROUP + rows % GROUP)[:, None] * HEAD_DIM + cols[None, :]
    q_mask = live[:, None] & in_head[None, :]
    q = tl.load(q_ptr + at_q, mask=q_mask, other=0.0)

    row_table_ptr = table_ptr + seq.to(tl.int64) * table_stride
    head_k_ptr = k_cache_ptr + kv_head * head_stride
    head_v_ptr = v_cache_ptr + kv_head * head_stride
    highest = tl.full((BLOCK_M,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    end = tl.minimum(start + BLOCK_Q, seq_len)
    low = 0
    middle = (start + 1) // BLOCK_N * BLOCK_N  # keys before this are seen by every query
    if WINDOW:
        low = tl.maximum(start - window + 1, 0) // BLOCK_N * BLOCK_N
        middle = low
    highest, total, acc = attend(
        q, positions, low, middle, row_table_ptr, head_k_ptr, head_v_ptr, block_stride, scale,
        soft_cap, window, highest, total, acc, False, WINDOW, SOFT_CAP, BLOCK_N, BLOCK_SIZE,
        HEAD_DIM, BLOCK_D, PRECISION,
    )  # fmt: skip
    highest, total, acc = attend(
        q, positions, middle, end, row_table_ptr, head_k_ptr, head_v_ptr, block_stride, scale,
        soft_cap, window, highest, total, acc, True, WINDOW, SOFT_CAP, BLOCK_TAIL, BLOCK_SIZE,
        HEAD_DIM, BLOCK_D, PRECISION,
    )  # fmt: skip
    y = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out_ptr + at_q, y.to(out_ptr.dtype.element_ty), mask=q_mask)


def packed_attention(
    spec: AttentionSpec,
    q: Tensor,  # [T, num_heads, D], contiguous
    batch: ForwardBatch,
    cache: LayerCache,
    min_query_len: int = 1,
    out: Tensor | None = None,
    config: PackedConfig | None = None,
) -> Tensor:
    """Attention of the rows with at least `min_query_len` query tokens -> [T, num_heads * D].

    Shorter rows are left as they are in `out`.
    """
    if out is None:
        out = torch.empty(
            q.shape[0], spec.num_heads * spec.head_dim, dtype=q.dtype, device=q.device
        )
    config = config or packed_config(spec.head_dim, q.dtype, supports_pdl(q), has_small_shared(q))
    group = spec.num_heads // spec.num_kv_heads
    block_m = max(config.block_m, next_power_of_2(group))
    block_q = block_m // group
    num_tiles = batch.num_tokens // block_q + batch.num_seqs
    pdl = supports_pdl(q)
    _packed_attention_kernel[(spec.num_kv_heads, num_tiles)](
        q,
        cache.k,
        cache.v,
        out,
        batch.query_start,
        batch.seq_lens,
        batch.block_table,
        batch.num_seqs,
        min_query_len,
        batch.block_table.stride(0),
        cache.k.stride(0),
        cache.k.stride(1),
        spec.scale,
        spec.soft_cap,
        spec.sliding_window,
        NUM_HEADS=spec.num_heads,
        NUM_KV_HEADS=spec.num_kv_heads,
        HEAD_DIM=spec.head_dim,
        BLOCK_SIZE=cache.k.shape[2],
        BLOCK_Q=block_q,
        BLOCK_M=block_m,
        BLOCK_N=config.block_n,
        BLOCK_TAIL=min(config.block_n, config.block_tail),
        BLOCK_D=next_power_of_2(spec.head_dim),
        LARGE=cache.k.numel() > MAX_INT32,
        WINDOW=spec.sliding_window > 0,
        SOFT_CAP=spec.soft_cap > 0,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        PDL=pdl,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        launch_pdl=pdl,
    )
    return out

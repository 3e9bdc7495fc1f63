"""Paged attention for few queries per row, split over the length of the cache.

One program takes all query heads of one kv head (and the few query tokens of its row) over one
chunk of the cache, as in Flash-Decoding (Dao et al., 2023). The program of a row that finishes last
adds up the chunks, always in the same order, so results do not depend on timing and there is no
second launch. Chunks are divided on the device from the row's true length; the grid depends only
on host-side bounds, so a CUDA graph can hold it.
"""

# ruff: noqa: N803, N806 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.attention.base import AttentionSpec, ForwardBatch, LayerCache, RopeInput
from pagemill.ops.triton.attention_tile import (
    LOWEST,
    attend,
    fold_tile,
    page_offsets,
    to_log2,
    visible,
)
from pagemill.ops.triton.helper import helper
from pagemill.ops.triton.launch import (
    has_small_shared,
    let_next_start,
    next_power_of_2,
    supports_pdl,
    wait_for_inputs,
)
from pagemill.ops.triton.rope import head_rms, load_cos_sin, rope_partner, to_cache_type

# Up to so many partial values are added up at once, more row by row.
MAX_COMBINED = tl.constexpr(16384)
MAX_ROWS = 64  # query tokens times heads per kv head that one program may hold


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The launch: programs per (row, kv head), the fewest tokens of a chunk, and tile shapes."""

    num_splits: int
    min_chunk: int
    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 3
    early: bool = False  # with rope: load the first keys before the kernels before are done


@helper
def _normed_rope(x_ptr, weight_ptr, mask, cols, cos, sin, eps, D: tl.constexpr, NORM: tl.constexpr):
    """Rows of x normed and rotated, in float32; x_ptr [M, 1] points at each row's start."""
    partner = rope_partner(cols, D)
    x = tl.load(x_ptr + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    y = tl.load(x_ptr + partner[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        rms = head_rms(x, eps, D)[:, None]
        inside = cols < D
        x = x * rms * tl.load(weight_ptr + cols, mask=inside, other=0.0)[None, :]
        y = y * rms * tl.load(weight_ptr + partner, mask=inside, other=0.0)[None, :]
    return x * cos[None, :] + y * sin[None, :]


@helper
def _write_new_token(
    row_ptr, k_ptr, v_ptr, slot, norm_ptr, kv_head, cols, cos, sin, eps, block_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, NORM: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Key and value [1, D] of the qkv row, as the cache holds them; written to `slot`."""
    in_head = (cols < D)[None, :]
    k_row = row_ptr + (NUM_HEADS + kv_head) * D + tl.zeros((1, 1), tl.int32)
    v_row = k_row + NUM_KV_HEADS * D
    k = _normed_rope(k_row, norm_ptr, in_head, cols, cos, sin, eps, D, NORM)
    k = to_cache_type(k, k_ptr, FP8)
    v = tl.load(v_row + cols[None, :], mask=in_head, other=0.0)
    v = to_cache_type(v.to(tl.float32), v_ptr, FP8)
    at = (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * D + cols[None, :]
    tl.store(k_ptr + at, k, mask=in_head & (slot >= 0))
    tl.store(v_ptr + at, v, mask=in_head & (slot >= 0))
    return k, v


@helper
def _chunk_of(
    split, start, seq_len, window, min_chunk, NUM_SPLITS: tl.constexpr, BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """The cached keys of a split, and how many splits of the row have any (at least one)."""
    cached = start if ROPE else seq_len
    low = tl.maximum(start - window + 1, 0) if WINDOW else 0
    span = tl.maximum(cached - low, 0)
    share = tl.cdiv(tl.cdiv(span, NUM_SPLITS), BLOCK_N) * BLOCK_N
    chunk = tl.maximum(share, min_chunk)
    active = tl.maximum(tl.cdiv(span, chunk), 1)
    begin = low + split * chunk
    return begin, tl.minimum(begin + chunk, cached), active


@helper
def _add_up_rows(
    partial_ptr, lse_ptr, out_ptr, first, active, query_start, rows, num_rows, kv_head,
    GROUP: tl.constexpr, ROWS: tl.constexpr, NUM_HEADS: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, NUM_SPLITS: tl.constexpr,
):  # fmt: skip
    """Combine the chunks `first`.. of some rows [R] of a kv head, weighted by their exp-sums."""
    cols = tl.arange(0, BLOCK_D)
    splits = tl.arange(0, NUM_SPLITS)
    live = rows < num_rows
    there = (splits < active)[:, None] & live[None, :]
    at = (first + splits)[:, None] * ROWS + rows[None, :]
    lse = tl.load(lse_ptr + at, mask=there, other=LOWEST, cache_modifier=".cg")
    chunk_ptr = partial_ptr + at[:, :, None] * D + cols[None, None, :]
    inside = there[:, :, None] & (cols < D)[None, None, :]
    chunks = tl.load(chunk_ptr, mask=inside, other=0.0, cache_modifier=".cg")
    weights = tl.where(there, tl.exp2(lse - tl.max(lse, axis=0)[None, :]), 0.0)
    total = tl.sum(weights, axis=0)
    values = tl.sum(chunks * weights[:, :, None], axis=0) / tl.where(live, total, 1.0)[:, None]
    tokens = (query_start + rows // GROUP).to(tl.int64)
    row_ptr = out_ptr + (tokens * NUM_HEADS + kv_head * GROUP + rows % GROUP) * D
    mask = live[:, None] & (cols < D)[None, :]
    tl.store(row_ptr[:, None] + cols[None, :], values.to(out_ptr.dtype.element_ty), mask=mask)


@helper
def _add_up_chunks(
    partial_ptr, lse_ptr, out_ptr, first, active, query_start, num_rows, kv_head,
    GROUP: tl.constexpr, ROWS: tl.constexpr, NUM_HEADS: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, NUM_SPLITS: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Combine the chunks `first`.. of all rows of a kv head."""
    if NUM_SPLITS * BLOCK_R * BLOCK_D <= MAX_COMBINED:
        _add_up_rows(
            partial_ptr, lse_ptr, out_ptr, first, active, query_start, tl.arange(0, BLOCK_R),
            num_rows, kv_head, GROUP, ROWS, NUM_HEADS, D, BLOCK_D, NUM_SPLITS,
        )  # fmt: skip
    else:
        for row in range(0, num_rows):
            _add_up_rows(
                partial_ptr, lse_ptr, out_ptr, first, active, query_start,
                row + tl.arange(0, 1), num_rows, kv_head, GROUP, ROWS, NUM_HEADS, D, BLOCK_D,
                NUM_SPLITS,
            )  # fmt: skip


@helper
def _hand_in_chunk(
    acc, highest, total, q_mask, live, rows, tokens, cols, partial_ptr, lse_ptr, counter_ptr,
    out_ptr, seq, split, active, query_start, query_len, kv_head,
    GROUP: tl.constexpr, ROWS: tl.constexpr, NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    NUM_SPLITS: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Store a split's result; the last of the row's splits to arrive adds them up."""
    divisor = tl.where(total > 0, total, 1.0)
    acc = acc / divisor[:, None]
    if active == 1:
        to = (tokens * NUM_HEADS + kv_head * GROUP + rows % GROUP) * HEAD_DIM
        out_ptrs = out_ptr + to[:, None] + cols[None, :]
        tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=q_mask)
    else:
        lse = tl.where(total > 0, highest + tl.log2(divisor), LOWEST)
        pair = seq * NUM_KV_HEADS + kv_head
        first_chunk = pair.to(tl.int64) * NUM_SPLITS
        to = (first_chunk + split) * ROWS + rows
        tl.store(partial_ptr + to[:, None] * HEAD_DIM + cols[None, :], acc, mask=q_mask)
        tl.store(lse_ptr + to, lse, mask=live)
        tl.debug_barrier()  # every thread's stores come before the release below
        arrived = tl.atomic_add(counter_ptr + pair, 1, sem="acq_rel", scope="gpu")
        if arrived == active - 1:
            tl.store(counter_ptr + pair, 0)
            _add_up_chunks(
                partial_ptr, lse_ptr, out_ptr, first_chunk, active, query_start,
                query_len * GROUP, kv_head, GROUP, ROWS, NUM_HEADS, HEAD_DIM, BLOCK_D, NUM_SPLITS,
                BLOCK_R,
            )  # fmt: skip


@helper
def _load_keys(
    row_table_ptr, k_ptr, v_ptr, keys, end, cols, block_stride, BLOCK_SIZE: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """Cached keys and values [N, D] of one head; zeros at or past `end`."""
    at = page_offsets(row_table_ptr, keys, end, block_stride, BLOCK_SIZE, D)
    at = at[:, None] + cols[None, :]
    inside = (keys < end)[:, None] & (cols < D)[None, :]
    k = tl.load(k_ptr + at, mask=inside, other=0.0)
    return k, tl.load(v_ptr + at, mask=inside, other=0.0)


@helper
def _no_values(BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """The online softmax before any key."""
    highest = tl.full((BLOCK_M,), LOWEST, tl.float32)
    return highest, tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M, BLOCK_D), tl.float32)


@helper
def _first_values(
    q, new_k, new_v, scale, soft_cap, SOFT_CAP: tl.constexpr, BLOCK_M: tl.constexpr
):  # fmt: skip
    """The online softmax after one key: running maximum, sum and output."""
    products = tl.sum(q.to(tl.float32) * new_k.to(tl.float32), axis=1)
    highest = to_log2(products, scale, soft_cap, SOFT_CAP)
    ones = tl.full((BLOCK_M,), 1.0, tl.float32)
    return highest, ones, ones[:, None] * new_v.to(tl.float32)


@helper
def _rope_inputs(
    q_ptr, q_rows, q_mask, q_norm_ptr, k_norm_ptr, cos_sin_ptr, slot_mapping_ptr, k_ptr, v_ptr,
    query_start, start, kv_head, has_new_token, cols, q_stride, block_stride, scale, soft_cap, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr, SOFT_CAP: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """The query, and the softmax begun with the new token, which is written to the cache."""
    cos, sin = load_cos_sin(cos_sin_ptr, start, cols, D)
    q = _normed_rope(q_rows, q_norm_ptr, q_mask, cols, cos, sin, eps, D, Q_NORM)
    q = q.to(q_ptr.dtype.element_ty)
    highest, total, acc = _no_values(BLOCK_M, BLOCK_D)
    if has_new_token:
        new_k, new_v = _write_new_token(
            q_ptr + query_start.to(tl.int64) * q_stride, k_ptr, v_ptr,
            tl.load(slot_mapping_ptr + query_start), k_norm_ptr, kv_head, cols, cos, sin, eps,
            block_stride, NUM_HEADS, NUM_KV_HEADS, D, BLOCK_SIZE, K_NORM, FP8,
        )  # fmt: skip
        highest, total, acc = _first_values(q, new_k, new_v, scale, soft_cap, SOFT_CAP, BLOCK_M)
    return q, highest, total, acc


@triton.jit(do_not_specialize=["table_stride", "window", "min_chunk"])
def _split_attention_kernel(
    q_ptr,  # q, or qkv when ROPE
    k_cache_ptr,
    v_cache_ptr,
    out_ptr,
    partial_ptr,
    lse_ptr,
    counter_ptr,
    query_start_ptr,
    seq_lens_ptr,
    table_ptr,
    slot_mapping_ptr,
    cos_sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    q_stride,
    table_stride,
    block_stride,
    head_stride,
    scale,
    soft_cap,
    window,
    eps,
    min_chunk,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERY_LEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    EARLY: tl.constexpr,
    ROPE: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    FP8: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    ROWS: tl.constexpr = GROUP * QUERY_LEN
    kv_head, seq, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    block_stride = block_stride.to(tl.int64)
    if EARLY:
        let_next_start(PDL)
    else:
        wait_for_inputs(PDL)
    query_start = tl.load(query_start_ptr + seq)
    query_len = tl.load(query_start_ptr + seq + 1) - query_start
    if query_len > QUERY_LEN or query_len <= 0:
        return
    seq_len = tl.load(seq_lens_ptr + seq)
    start = seq_len - query_len  # the first query's position
    begin, end, active = _chunk_of(
        split, start, seq_len, window, min_chunk, NUM_SPLITS, BLOCK_N, WINDOW, ROPE
    )
    if split >= active:
        return
    rows, cols = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    positions, live = start + rows // GROUP, rows < query_len * GROUP
    q_mask = live[:, None] & (cols < HEAD_DIM)[None, :]
    tokens = (query_start + rows // GROUP).to(tl.int64)
    q_rows = q_ptr + (tokens * q_stride + (kv_head * GROUP + rows % GROUP) * HEAD_DIM)[:, None]
    k_ptr, v_ptr = k_cache_ptr + kv_head * head_stride, v_cache_ptr + kv_head * head_stride
    own_table_ptr = table_ptr + seq.to(tl.int64) * table_stride
    if EARLY:
        keys = begin + tl.arange(0, BLOCK_N)
        first_k, first_v = _load_keys(
            own_table_ptr, k_ptr, v_ptr, keys, end, cols, block_stride, BLOCK_SIZE, HEAD_DIM
        )
        wait_for_inputs(PDL)
    if ROPE:
        q, highest, total, acc = _rope_inputs(
            q_ptr, q_rows, q_mask, q_norm_ptr, k_norm_ptr, cos_sin_ptr, slot_mapping_ptr, k_ptr,
            v_ptr, query_start, start, kv_head, split == active - 1, cols, q_stride, block_stride,
            scale, soft_cap, eps, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCK_M, BLOCK_D,
            Q_NORM, K_NORM, SOFT_CAP, FP8,
        )  # fmt: skip
    else:
        q = tl.load(q_rows + cols[None, :], mask=q_mask, other=0.0)
        highest, total, acc = _no_values(BLOCK_M, BLOCK_D)
    if EARLY:
        seen = visible(positions, keys, window, WINDOW) & (keys < end)[None, :]
        highest, total, acc = fold_tile(
            q, first_k.to(q.dtype), first_v.to(q.dtype), seen, highest, total, acc, scale, soft_cap,
            True, SOFT_CAP, PRECISION,
        )  # fmt: skip
        begin += BLOCK_N
    highest, total, acc = attend(
        q, positions, begin, end, own_table_ptr, k_ptr, v_ptr, block_stride, scale,
        soft_cap, window, highest, total, acc, True, WINDOW, SOFT_CAP, BLOCK_N, BLOCK_SIZE,
        HEAD_DIM, BLOCK_D, PRECISION,
    )  # fmt: skip
    _hand_in_chunk(
        acc, highest, total, q_mask, live, rows, tokens, cols, partial_ptr, lse_ptr, counter_ptr,
        out_ptr, seq, split, active, query_start, query_len, kv_head, GROUP, ROWS, NUM_HEADS,
        NUM_KV_HEADS, HEAD_DIM, BLOCK_D, NUM_SPLITS, BLOCK_R,
    )  # fmt: skip


def _head_dims(spec: AttentionSpec, cache: LayerCache) -> dict[str, object]:
    return {
        "NUM_HEADS": spec.num_heads,
        "NUM_KV_HEADS": spec.num_kv_heads,
        "HEAD_DIM": spec.head_dim,
        "BLOCK_D": next_power_of_2(spec.head_dim),
        "BLOCK_SIZE": cache.k.shape[2],
        "WINDOW": spec.sliding_window > 0,
        "SOFT_CAP": spec.soft_cap > 0,
    }


def max_query_len(spec: AttentionSpec) -> int:
    """The most query tokens per row that `split_attention` takes for this layer."""
    return max(1, MAX_ROWS // (spec.num_heads // spec.num_kv_heads))


def fitting_block_n(plan: SplitPlan, rows: int, head_dim: int, small_shared: bool) -> int:
    """Keys of a tile for so many (token, head) pairs: fewer where wide heads would not fit."""
    large = rows > 32 and head_dim > 128
    return min(plan.block_n, 32) if small_shared and large else plan.block_n


def split_attention(
    spec: AttentionSpec,
    q: Tensor,  # [T, num_heads, D]; with rope: qkv [T, q_size + 2 kv_size]
    batch: ForwardBatch,
    cache: LayerCache,
    counters: Tensor,  # int32, zeros, at least num_seqs * num_kv_heads; left as zeros
    plan: SplitPlan,
    query_len: int,
    rope: RopeInput | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of the rows with at most `query_len` query tokens -> [T, num_heads * D].

    Longer rows are left as they are in `out`. With `rope`, rows have one token, whose key and
    value are normed, rotated and written to the cache on the way. `plan.early` relies on the
    batch's lengths, its block table and the cache being older than the kernel that made `q`.
    """
    if out is None:
        out = torch.empty(
            q.shape[0], spec.num_heads * spec.head_dim, dtype=q.dtype, device=q.device
        )
    group = spec.num_heads // spec.num_kv_heads
    pairs = batch.num_seqs * spec.num_kv_heads
    chunk_rows = pairs * plan.num_splits * group * query_len if plan.num_splits > 1 else 0
    partial = torch.empty(chunk_rows * spec.head_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(chunk_rows, dtype=torch.float32, device=q.device)
    pdl = supports_pdl(q)
    _split_attention_kernel[(spec.num_kv_heads, batch.num_seqs, plan.num_splits)](
        q,
        cache.k,
        cache.v,
        out,
        partial,
        lse,
        counters,
        batch.query_start,
        batch.seq_lens,
        batch.block_table,
        batch.slot_mapping,
        rope.cos_sin if rope else None,
        rope.q_norm if rope else None,
        rope.k_norm if rope else None,
        q.stride(0),
        batch.block_table.stride(0),
        cache.k.stride(0),
        cache.k.stride(1),
        spec.scale,
        spec.soft_cap,
        spec.sliding_window,
        rope.eps if rope else 0.0,
        plan.min_chunk,
        **_head_dims(spec, cache),
        QUERY_LEN=query_len,
        BLOCK_M=max(16, next_power_of_2(group * query_len)),
        BLOCK_N=fitting_block_n(plan, group * query_len, spec.head_dim, has_small_shared(q)),
        BLOCK_R=next_power_of_2(group * query_len),
        NUM_SPLITS=plan.num_splits,
        EARLY=rope is not None and plan.early,
        ROPE=rope is not None,
        Q_NORM=rope is not None and rope.q_norm is not None,
        K_NORM=rope is not None and rope.k_norm is not None,
        FP8=cache.k.dtype == torch.float8_e4m3fn,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        PDL=pdl,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
        launch_pdl=pdl,
    )
    return out

"""What both attention kernels do with one tile of keys: find it, score it, fold it in.

Softmax is kept online (Milakov and Gimelshein, 2018) in base 2, as in FlashAttention-2 (Dao, 2023).
"""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

import triton.language as tl

from pagemill.ops.triton.activation import tanh
from pagemill.ops.triton.helper import helper

LOWEST = tl.constexpr(-1.0e30)  # a finite "minus infinity": differences are not NaN


@helper
def page_offsets(table_ptr, tokens, limit, block_stride, BLOCK_SIZE: tl.constexpr, D: tl.constexpr):
    """Where each token's row of one head begins; tokens at or past `limit` give block 0.

    In `block_stride`'s type, which must hold the size of the cache.
    """
    pages = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=tokens < limit, other=0)
    return pages.to(block_stride.dtype) * block_stride + (tokens % BLOCK_SIZE) * D


@helper
def to_log2(products, scale, soft_cap, SOFT_CAP: tl.constexpr):
    """Scores from dot products, scaled, capped, and multiplied by log2(e)."""
    if SOFT_CAP:
        return tanh(products * (scale / soft_cap)) * (soft_cap * 1.4426950408889634)
    return products * (scale * 1.4426950408889634)


@helper
def fold_tile(
    q,  # [M, D]
    k,  # [N, D]
    v,  # [N, D]
    keep,  # [M, N] or broadcastable: which keys each query sees
    highest,  # [M] running maximum
    total,  # [M] running sum
    acc,  # [M, D] running weighted values
    scale,
    soft_cap,
    MASK: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One step of online softmax attention."""
    products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    scores = to_log2(products, scale, soft_cap, SOFT_CAP)
    if MASK:
        scores = tl.where(keep, scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - new_highest[:, None])
    shrink = tl.exp2(highest - new_highest)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(v.dtype), v, acc=acc * shrink[:, None], input_precision=PRECISION)
    return new_highest, total, acc


@helper
def visible(positions, tokens, window, WINDOW: tl.constexpr):
    """[M, N]: whether the query at each position sees each token."""
    keep = tokens[None, :] <= positions[:, None]
    if WINDOW:
        keep = keep & (tokens[None, :] > positions[:, None] - window)
    return keep


@helper
def attend(
    q,  # [M, D]
    positions,  # [M]
    begin,
    end,
    table_ptr,
    k_ptr,  # one kv head's keys in block 0
    v_ptr,
    block_stride,
    scale,
    soft_cap,
    window,
    highest,
    total,
    acc,
    MASK: tl.constexpr,  # off: `end - begin` is whole tiles that every query sees
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold the keys `begin`..`end` of a row into the running softmax, tile by tile."""
    cols = tl.arange(0, BLOCK_D)
    in_head = (cols < D)[None, :]
    for first in range(begin, end, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        at = page_offsets(table_ptr, keys, end, block_stride, BLOCK_SIZE, D)
        at = at[:, None] + cols[None, :]
        keep = in_head
        inside = in_head
        if MASK:
            inside = (keys < end)[:, None] & in_head
            keep = visible(positions, keys, window, WINDOW) & (keys < end)[None, :]
        k = tl.load(k_ptr + at, mask=inside, other=0.0).to(q.dtype)
        v = tl.load(v_ptr + at, mask=inside, other=0.0).to(q.dtype)
        highest, total, acc = fold_tile(
            q, k, v, keep, highest, total, acc, scale, soft_cap, MASK, SOFT_CAP, PRECISION
        )
    return highest, total, acc

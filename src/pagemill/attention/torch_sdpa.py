"""Paged attention in torch: gathers each row's pages, then one dense product per group of rows.

The reference for other backends, and the one that runs everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pagemill.attention.base import AttentionSpec, ForwardBatch
from pagemill.ops.int8_cache import widen_pages

# Scores held at once by the path that materialises them.
_MAX_SCORES = 1 << 24


@dataclass(slots=True)
class RowGroup:
    """Consecutive rows with equally many query tokens, computed together.

    `pages` and `masks` are made by the first layer that needs them and shared by the others.
    """

    rows: slice
    num_rows: int
    tokens: slice
    query_len: int
    max_seq_len: int  # upper bound over the rows
    pages: dict[int, Tensor] = field(default_factory=dict)  # by number of kv heads
    masks: dict[int, Tensor] = field(default_factory=dict)  # by sliding window


class TorchAttention:
    """Implements `AttentionBackend` for any device and floating type."""

    name = "torch"

    def plan(self, batch: ForwardBatch) -> list[RowGroup]:
        """Group the rows.

        Waits for a CUDA device only if the rows differ in length and the batch has no host
        copies of `query_start` and `seq_lens`.
        """
        n, longest = batch.num_seqs, batch.max_query_len
        if n * longest == batch.num_tokens:
            return [
                RowGroup(slice(0, n), n, slice(0, batch.num_tokens), longest, batch.max_seq_len)
            ]
        starts = _on_host(batch.host_query_start, batch.query_start)[: n + 1]
        seq_lens = _on_host(batch.host_seq_lens, batch.seq_lens)[:n]
        return list(_runs_of_equal_length(starts, seq_lens))

    def run(self, spec: AttentionSpec, q: Tensor, batch: ForwardBatch) -> Tensor:
        groups: list[RowGroup] = batch.plan
        if len(groups) == 1:
            return _attend(spec, q, batch, groups[0])
        out = q.new_empty(q.shape[0], spec.num_heads * spec.head_dim)
        for group in groups:
            out[group.tokens] = _attend(spec, q[group.tokens], batch, group)
        return out


def _on_host(copy: NDArray[np.int32] | None, tensor: Tensor) -> NDArray[np.int32]:
    return tensor.cpu().numpy() if copy is None else copy


def _runs_of_equal_length(
    starts: NDArray[np.int32], seq_lens: NDArray[np.int32]
) -> Iterator[RowGroup]:
    query_lens = np.diff(starts)
    changes = np.flatnonzero(np.diff(query_lens)) + 1
    bounds = [0, *changes.tolist(), len(query_lens)]
    for first, end in pairwise(bounds):
        if query_lens[first] > 0:
            yield RowGroup(
                slice(first, end),
                end - first,
                slice(int(starts[first]), int(starts[end])),
                int(query_lens[first]),
                int(seq_lens[first:end].max()),
            )


def _attend(spec: AttentionSpec, q: Tensor, batch: ForwardBatch, group: RowGroup) -> Tensor:
    """q [rows * query_len, num_heads, D] -> [rows * query_len, num_heads * D]."""
    cache = batch.kv_cache[spec.layer_index]
    pages = _pages(group, batch, spec.num_kv_heads, cache.k.shape[2])
    k = _gather(cache.k, pages).to(q.dtype)  # [rows, kv_heads, L, D]
    v = _gather(cache.v, pages).to(q.dtype)
    share = spec.num_heads // spec.num_kv_heads
    grouped = q.view(group.num_rows, group.query_len, spec.num_kv_heads, share, spec.head_dim)
    grouped = grouped.permute(0, 2, 3, 1, 4)  # [rows, kv_heads, share, query_len, D]
    mask = _mask(group, batch, spec.sliding_window, k.shape[2])
    attend = _dense if spec.soft_cap or group.query_len == 1 else _fused
    out = attend(spec, grouped, k, v, mask)
    return out.permute(0, 3, 1, 2, 4).reshape(q.shape[0], -1)


def _pages(group: RowGroup, batch: ForwardBatch, num_kv_heads: int, block_size: int) -> Tensor:
    """Which (block, head) pages make up the group's keys: [rows, num_kv_heads, blocks]."""
    if num_kv_heads not in group.pages:
        num_blocks = -(-group.max_seq_len // block_size)
        blocks = batch.block_table[group.rows, :num_blocks]
        heads = torch.arange(num_kv_heads, dtype=blocks.dtype, device=blocks.device)
        group.pages[num_kv_heads] = blocks[:, None] * num_kv_heads + heads[:, None]
    return group.pages[num_kv_heads]


def _gather(cache: Tensor, pages: Tensor) -> Tensor:
    """[num_blocks, kv_heads, block_size, D] -> [rows, kv_heads, blocks * block_size, D]."""
    flat = cache.flatten(0, 1).flatten(1)  # [num_blocks * kv_heads, block_size * D]
    rows, heads, _ = pages.shape
    if cache.dtype.itemsize == 1:  # torch has no indexing of float8 on CPUs
        flat = flat.view(torch.uint8)
    chosen = flat.index_select(0, pages.flatten()).view(cache.dtype)
    if cache.dtype == torch.int8:
        widened = widen_pages(chosen.view(-1, *cache.shape[2:]))
        return widened.view(rows, heads, -1, widened.shape[2])
    return chosen.view(rows, heads, -1, cache.shape[3])


def _mask(group: RowGroup, batch: ForwardBatch, window: int, num_keys: int) -> Tensor:
    """Which keys each query sees: [rows, 1, 1, query_len, num_keys], from the device's lengths."""
    if window not in group.masks:
        seq_lens = batch.seq_lens[group.rows]
        steps = torch.arange(group.query_len, device=seq_lens.device)
        query = (seq_lens[:, None] - group.query_len + steps)[:, None, None, :, None]
        key = torch.arange(num_keys, device=seq_lens.device)
        mask = key <= query
        group.masks[window] = mask & (key > query - window) if window else mask
    return group.masks[window]


def _fused(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Through torch's fused kernels, which do not materialise the scores."""
    rows, kv_heads, share, query_len, head_dim = q.shape
    flat = q.reshape(rows, kv_heads, share * query_len, head_dim)
    mask = mask.expand(-1, 1, share, -1, -1).flatten(2, 3)  # [rows, 1, share * query_len, L]
    out = F.scaled_dot_product_attention(flat, k, v, attn_mask=mask, scale=spec.scale)
    return out.view(q.shape)


def _dense(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """With scores in memory, as many queries at a time as their budget allows."""
    query_len = q.shape[3]
    scores_per_query = max(1, q[:, :, :, 0, 0].numel() * k.shape[2])
    step = max(1, _MAX_SCORES // scores_per_query)
    if query_len <= step:
        return _softmax_product(spec, q, k, v, mask)
    pieces = zip(torch.split(q, step, dim=3), torch.split(mask, step, dim=3), strict=True)
    return torch.cat([_softmax_product(spec, part, k, v, m) for part, m in pieces], dim=3)


def _softmax_product(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    rows, kv_heads, share, query_len, head_dim = q.shape
    flat = q.reshape(rows, kv_heads, share * query_len, head_dim)
    scores = torch.matmul(flat, k.transpose(2, 3)).float().mul_(spec.scale)
    if spec.soft_cap:
        scores.div_(spec.soft_cap).tanh_().mul_(spec.soft_cap)
    scores.view(rows, kv_heads, share, query_len, -1).masked_fill_(~mask, float("-inf"))
    weights = scores.softmax(dim=-1).to(v.dtype)
    return torch.matmul(weights, v).view(q.shape)

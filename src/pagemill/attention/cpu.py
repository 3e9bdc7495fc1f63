"""Paged attention in C++: decode rows and prompt chunks in one call per layer."""

from __future__ import annotations

import torch
from torch import Tensor

from pagemill.attention.base import AttentionSpec, ForwardBatch
from pagemill.ops.cpu import _native
from pagemill.ops.cpu.ops import MAX_HEAD_DIM, address, type_code


class CpuAttention:
    """Implements `AttentionBackend`; float32 and bfloat16, head sizes up to 256."""

    name = "cpu"

    def plan(self, batch: ForwardBatch) -> None:
        assert batch.block_table.dtype == torch.int32 and batch.block_table.stride(1) == 1
        assert batch.query_start.dtype == batch.seq_lens.dtype == torch.int32

    def run(self, spec: AttentionSpec, q: Tensor, batch: ForwardBatch) -> Tensor:
        if spec.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"head size {spec.head_dim} is above {MAX_HEAD_DIM}")
        cache = batch.kv_cache[spec.layer_index]
        out = torch.empty(q.shape[0], spec.num_heads * spec.head_dim, dtype=q.dtype)
        _native.attention(
            type_code(q),
            address(q),
            out.data_ptr(),
            address(cache.k),
            address(cache.v),
            batch.block_table.data_ptr(),
            address(batch.query_start),
            address(batch.seq_lens),
            batch.num_seqs,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            cache.k.shape[2],
            batch.block_table.stride(0),
            spec.scale,
            spec.soft_cap,
            spec.sliding_window,
        )
        return out

"""Paged attention in C++: decode rows and prompt chunks in one call per layer."""

from __future__ import annotations

import torch
from torch import Tensor

from pagemill.attention.base import AttentionSpec, ForwardBatch
from pagemill.ops.cpu import _native
from pagemill.ops.cpu.types import address, attention_shape, cache_pages, type_code


class CpuAttention:
    """Implements `AttentionBackend`; float32 and bfloat16, head sizes up to 256."""

    name = "cpu"

    def plan(self, batch: ForwardBatch) -> _native.Step:
        """The addresses of the step's tensors, which live as long as the batch."""
        assert batch.block_table.dtype == torch.int32 and batch.block_table.stride(1) == 1
        assert batch.query_start.dtype == batch.seq_lens.dtype == torch.int32
        assert batch.positions.dtype == batch.slot_mapping.dtype == torch.int64
        return _native.Step(
            address(batch.positions),
            address(batch.slot_mapping),
            batch.block_table.data_ptr(),
            address(batch.query_start),
            address(batch.seq_lens),
            batch.num_seqs,
            batch.num_tokens,
            batch.block_table.stride(0),
        )

    def run(self, spec: AttentionSpec, q: Tensor, batch: ForwardBatch) -> Tensor:
        step = batch.plan if isinstance(batch.plan, _native.Step) else self.plan(batch)
        cache = batch.kv_cache[spec.layer_index]
        out = torch.empty(q.shape[0], spec.num_heads * spec.head_dim, dtype=q.dtype)
        _native.attention(
            type_code(q),
            address(q),
            out.data_ptr(),
            attention_shape(
                spec.num_heads,
                spec.num_kv_heads,
                spec.head_dim,
                spec.scale,
                spec.soft_cap,
                spec.sliding_window,
            ),
            step,
            cache_pages(cache.k, cache.v, spec.head_dim, q.dtype),
        )
        return out

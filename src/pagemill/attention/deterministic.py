"""Attention of a token that does not depend on the other tokens of the step, bit by bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pagemill.attention.base import AttentionBackend, AttentionSpec, ForwardBatch

_MANY_ROWS = 1 << 20
_TRITON_ROWS = 1024  # bounds the memory of the partial results
_TRITON_SPLITS = 4
_TRITON_MIN_CHUNK = 512


class DeterministicAttention:
    """Implements `AttentionBackend` around another.

    Every query token becomes a row of its own with one query, so a token is computed alike in a
    chunk of a prompt, in a whole prompt, and while generating. `rows_per_call` 1 is for backends
    whose products grow with the longest row; for them the positions are read from the device.
    """

    def __init__(self, inner: AttentionBackend, rows_per_call: int) -> None:
        self.name = f"{inner.name}, deterministic"
        self._inner = inner
        self._rows_per_call = rows_per_call

    def plan(self, batch: ForwardBatch) -> list[ForwardBatch]:
        num_tokens, device = batch.num_tokens, batch.positions.device
        counts = batch.query_start.diff()
        row = torch.arange(batch.num_seqs, device=device)
        owner = row.repeat_interleave(counts, output_size=num_tokens)
        table, lengths = batch.block_table[owner], (batch.positions + 1).to(torch.int32)
        size = self._rows_per_call
        bounds = batch.positions.tolist() if size == 1 else None
        parts = []
        for start in range(0, num_tokens, size):
            at = slice(start, min(start + size, num_tokens))
            bound = batch.max_seq_len if bounds is None else bounds[start] + 1
            parts.append(self._part(batch, table[at], lengths[at], bound))
        return parts

    def run(self, spec: AttentionSpec, q: Tensor, batch: ForwardBatch) -> Tensor:
        parts: list[ForwardBatch] = batch.plan
        queries = torch.split(q, self._rows_per_call)
        pairs = zip(queries, parts, strict=True)
        return torch.cat([self._inner.run(spec, rows, part) for rows, part in pairs])

    def _part(
        self, batch: ForwardBatch, table: Tensor, lengths: Tensor, bound: int
    ) -> ForwardBatch:
        """Some tokens as rows; what attention does not read is left as it is."""
        n = len(lengths)
        part = replace(
            batch,
            query_start=torch.arange(n + 1, dtype=torch.int32, device=lengths.device),
            seq_lens=lengths,
            block_table=table,
            num_seqs=n,
            num_tokens=n,
            max_query_len=1,
            max_seq_len=bound,
            host_query_start=np.arange(n + 1, dtype=np.int32),
            host_seq_lens=np.full(n, bound, np.int32),
        )
        part.plan = self._inner.plan(part)
        return part


class FixedSplitAttention:
    """Implements `AttentionBackend` by the Triton kernel for single queries.

    A cache is divided by its own length, where `TritonAttention` also looks at the number of rows.
    """

    name = "triton"

    def __init__(self) -> None:
        from pagemill.ops.triton.counters import Counters
        from pagemill.ops.triton.split_attention import SplitPlan

        self._counters = Counters()
        self._splits = SplitPlan(_TRITON_SPLITS, _TRITON_MIN_CHUNK)

    def plan(self, batch: ForwardBatch) -> None:
        assert batch.max_query_len == 1

    def run(self, spec: AttentionSpec, q: Tensor, batch: ForwardBatch) -> Tensor:
        from pagemill.ops.triton.split_attention import split_attention

        cache = batch.kv_cache[spec.layer_index]
        counters = self._counters.get(q.device, batch.num_seqs * spec.num_kv_heads)
        return split_attention(spec, q, batch, cache, counters, self._splits, 1)


def make_deterministic(backend: AttentionBackend) -> DeterministicAttention:
    """The deterministic form of a backend from `select_attention`."""
    if backend.name == "triton":
        return DeterministicAttention(FixedSplitAttention(), _TRITON_ROWS)
    if backend.name == "cpu":
        return DeterministicAttention(backend, _MANY_ROWS)
    return DeterministicAttention(backend, 1)

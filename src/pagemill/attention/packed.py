"""Bidirectional attention of packed rows, without padding and without a cache."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from pagemill.attention.base import AttentionSpec, ForwardBatch


@dataclass(frozen=True, slots=True)
class EqualRows:
    """Neighbouring rows of one length."""

    tokens: slice
    num_rows: int
    length: int


class GroupedAttention:
    """Implements `PackedAttention` anywhere: one call of torch's for all rows of one length."""

    name = "torch, packed"

    def plan(self, batch: ForwardBatch) -> list[EqualRows]:
        assert batch.host_query_start is not None
        starts = batch.host_query_start[: batch.num_seqs + 1]
        lengths = np.diff(starts)
        bounds = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
        return [
            EqualRows(slice(int(starts[a]), int(starts[b])), b - a, int(lengths[a]))
            for a, b in pairwise(bounds)
        ]

    def run_packed(self, spec: AttentionSpec, qkv: Tensor, batch: ForwardBatch) -> Tensor:
        groups: list[EqualRows] = batch.plan
        out = qkv.new_empty(qkv.shape[0], spec.num_heads, spec.head_dim)
        for group in groups:
            rows = qkv[group.tokens].view(group.num_rows, group.length, 3, -1, spec.head_dim)
            q, k, v = rows.permute(2, 0, 3, 1, 4)  # [n, heads, length, D] each
            attended = F.scaled_dot_product_attention(q, k, v, scale=spec.scale)
            out[group.tokens].view(group.num_rows, group.length, -1, spec.head_dim).copy_(
                attended.transpose(1, 2)
            )
        return out.flatten(1)

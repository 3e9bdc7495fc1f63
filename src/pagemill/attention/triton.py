"""Paged attention by Triton kernels: split over the cache for few queries, packed for many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagemill.attention.base import AttentionSpec, ForwardBatch
from pagemill.ops.triton.launch import cdiv, next_power_of_2, num_sms
from pagemill.ops.triton.packed_attention import packed_attention
from pagemill.ops.triton.split_attention import (
    RopeInput,
    SplitPlan,
    max_query_len,
    split_attention,
)

PROGRAMS_PER_SM = 4  # what fits a multiprocessor at once
MAX_SPLITS = 64
FULL_DEVICE_SPLITS = 4  # even then: one long row must not hold up a step of short ones
MIN_CHUNK = 64
FULL_DEVICE_MIN_CHUNK = 512
COUNTERS = 65_536  # rows times kv heads of a step


@dataclass(frozen=True, slots=True)
class TritonPlan:
    """The host's choices for a step; they depend on nothing that the device computes."""

    num_rows: int
    max_query_len: int


def choose_splits(pairs: int, sms: int) -> SplitPlan:
    """How to divide the caches of `pairs` (row, kv head) pairs over a device."""
    wanted = cdiv(PROGRAMS_PER_SM * sms, pairs)
    if wanted <= FULL_DEVICE_SPLITS:
        return SplitPlan(FULL_DEVICE_SPLITS, FULL_DEVICE_MIN_CHUNK)
    return SplitPlan(min(next_power_of_2(wanted), MAX_SPLITS), MIN_CHUNK)


class TritonAttention:
    """`AttentionBackend` on CUDA. Plans are host-side only, so a CUDA graph can hold `run`.

    A step whose rows all have few query tokens (decode, with or without drafts) is one launch. In
    a mixed step, rows with one query token go to the split kernel and the others to the packed one.
    """

    name = "triton"

    def __init__(self, device: torch.device | str) -> None:
        self._counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)

    def plan(self, batch: ForwardBatch) -> TritonPlan:
        """Note the step's bounds; grows the counters if a step was never so wide."""
        return TritonPlan(num_rows=batch.num_seqs, max_query_len=batch.max_query_len)

    def run(self, spec: AttentionSpec, q: Tensor, batch: ForwardBatch) -> Tensor:
        """Causal attention of q [T, num_heads, D] over each row's pages -> [T, num_heads * D]."""
        cache = batch.kv_cache[spec.layer_index]
        if batch.max_query_len <= max_query_len(spec):
            return self._split(spec, q, batch, batch.max_query_len)
        if batch.num_seqs == 1:
            return packed_attention(spec, q, batch, cache)
        out = packed_attention(spec, q, batch, cache, min_query_len=2)
        return self._split(spec, q, batch, 1, out=out)

    def run_with_rope(
        self, spec: AttentionSpec, qkv: Tensor, batch: ForwardBatch, rope: RopeInput
    ) -> Tensor:
        """One launch for `qk_norm_rope_cache` and `run`; every row has one query token.

        qkv [T, q_size + 2 kv_size] -> [T, num_heads * D]; keys and values of the new tokens are
        written to the cache.
        """
        return self._split(spec, qkv, batch, 1, rope=rope)

    def _split(
        self,
        spec: AttentionSpec,
        q: Tensor,
        batch: ForwardBatch,
        query_len: int,
        rope: RopeInput | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        cache = batch.kv_cache[spec.layer_index]
        pairs = batch.num_seqs * spec.num_kv_heads
        plan = choose_splits(pairs, num_sms(q))
        counters = self._counters_for(pairs)
        return split_attention(spec, q, batch, cache, counters, plan, query_len, rope, out)

    def _counters_for(self, pairs: int) -> Tensor:
        if pairs > self._counters.numel():
            self._counters = self._counters.new_zeros(next_power_of_2(pairs))
        return self._counters

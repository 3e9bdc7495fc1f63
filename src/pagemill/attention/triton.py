"""Paged attention by Triton kernels: split over the cache for few queries, packed for many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pagemill.attention.base import AttentionSpec, ForwardBatch, RopeInput
from pagemill.ops.triton.counters import Counters
from pagemill.ops.triton.launch import cdiv, num_sms
from pagemill.ops.triton.packed_attention import packed_attention
from pagemill.ops.triton.split_attention import (
    SplitPlan,
    max_query_len,
    split_attention,
)

PROGRAMS_PER_SM = 4  # what fits a multiprocessor at once
BESIDE_PROMPTS = SplitPlan(4, 512)  # one plan for all: prompts keep the device busy meanwhile
DRAFT_QUERY_LEN = 8
LONG = 8192  # tokens; where rows may be longer, one must not hold up a step of short ones


def choose_splits(pairs: int, sms: int, longest: int) -> SplitPlan:
    """How to divide the caches of `pairs` (row, kv head) pairs over a device.

    Few choices, since each is a kernel to compile. Splits that a row is too short for cost a little
    each, so a full device gets none unless a row may have more than LONG tokens.
    """
    wanted = cdiv(PROGRAMS_PER_SM * sms, pairs)
    if wanted > 16:
        return SplitPlan(64, 32, block_n=32, early=True)
    if wanted > 4:
        return SplitPlan(4, 256, early=True)
    if longest > LONG:
        return SplitPlan(4, 2048 if wanted == 1 else 512, early=True)
    return SplitPlan(2, 256) if wanted > 1 else SplitPlan(1, LONG)


def split_query_len(longest: int, spec: AttentionSpec) -> int:
    """The query length that the split kernel is compiled for, one of three; 0: it is too long."""
    most = max_query_len(spec)
    lengths = [1, *([DRAFT_QUERY_LEN] if most > DRAFT_QUERY_LEN else []), most]
    return next((length for length in lengths if longest <= length), 0)


@dataclass(frozen=True, slots=True)
class TritonPlan:
    """Whether a step has rows with one query token beside longer ones."""

    has_single: bool


class TritonAttention:
    """`AttentionBackend` on CUDA. Launches follow from host-side bounds: CUDA graphs hold them.

    A step whose rows all have few query tokens (decode, with or without drafts) is one launch. In
    a mixed step, rows with one query token go to the split kernel and the others to the packed one.
    """

    name = "triton"

    def __init__(self) -> None:
        self._counters = Counters()

    def plan(self, batch: ForwardBatch) -> TritonPlan:
        """Look at the host's row lengths where the batch has them."""
        if batch.host_query_start is None:
            return TritonPlan(has_single=batch.num_seqs > 1)
        lengths = np.diff(batch.host_query_start[: batch.num_seqs + 1])
        return TritonPlan(has_single=bool((lengths == 1).any()))

    def run(self, spec: AttentionSpec, q: Tensor, batch: ForwardBatch) -> Tensor:
        """Causal attention of q [T, num_heads, D] over each row's pages -> [T, num_heads * D]."""
        query_len = split_query_len(batch.max_query_len, spec)
        if query_len:
            return self._split(spec, q, batch, query_len)
        plan: TritonPlan = batch.plan
        cache = batch.kv_cache[spec.layer_index]
        if not plan.has_single:
            return packed_attention(spec, q, batch, cache)
        out = packed_attention(spec, q, batch, cache, min_query_len=2)
        return self._split(spec, q, batch, 1, out=out, plan=BESIDE_PROMPTS)

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
        plan: SplitPlan | None = None,
    ) -> Tensor:
        cache = batch.kv_cache[spec.layer_index]
        pairs = batch.num_seqs * spec.num_kv_heads
        plan = plan or choose_splits(pairs, num_sms(q), batch.max_seq_len)
        counters = self._counters.get(q.device, pairs)
        return split_attention(spec, q, batch, cache, counters, plan, query_len, rope, out)

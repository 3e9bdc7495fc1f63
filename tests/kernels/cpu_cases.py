"""Batches with scattered pages for the C++ kernels, and their attention in float64."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pagemill.attention.base import AttentionSpec, ForwardBatch, LayerCache
from pagemill.checkpoint.groups import GroupedWeight
from pagemill.ops.cpu.memory import WeightMemory
from pagemill.ops.int8_cache import round_pages, widen_pages

if TYPE_CHECKING:
    from pagemill.ops.cpu.matrix import PackedMatrix

EXAMPLES = int(os.environ.get("PAGEMILL_KERNEL_EXAMPLES", "40"))  # fewer under a sanitizer
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
memory = WeightMemory()


def close(actual: Tensor, expected: Tensor, slack: float = 1.0) -> None:
    tolerance = slack * TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def packed(
    weight: GroupedWeight, bias: Tensor | None = None, *, coarse: bool = False
) -> PackedMatrix:
    """As the C++ kernels take it."""
    from pagemill.ops.cpu.matrix import pack_matrix  # whoever asks has found the kernels

    return pack_matrix(
        weight.codes,
        weight.scale,
        weight.offset,
        bias,
        bits=weight.bits,
        in_features=weight.in_features,
        memory=memory,
        coarse=coarse,
    )


def to_cache(pages: Tensor, kind: torch.dtype) -> Tensor:
    return round_pages(pages) if kind == torch.int8 else pages.to(kind)


@dataclass
class Case:
    """A mixed batch with every row's pages scattered over the cache."""

    spec: AttentionSpec
    q: Tensor
    batch: ForwardBatch


def make_case(
    rows: list[tuple[int, int]], spec: AttentionSpec, dtype: torch.dtype, block_size: int
) -> Case:
    """`rows` holds (query tokens, tokens before them)."""
    lengths = [queries + past for queries, past in rows]
    blocks = [-(-length // block_size) for length in lengths]
    pages = torch.randperm(sum(blocks) + 2).int()
    table = torch.full((len(rows), max(blocks)), -1, dtype=torch.int32)
    for row, ids in enumerate(pages[: sum(blocks)].split(blocks)):
        table[row, : len(ids)] = ids
    starts = torch.tensor([0] + [queries for queries, _ in rows]).cumsum(0).int()
    k, v = torch.randn(2, len(pages), spec.num_kv_heads, block_size, spec.head_dim).to(dtype)
    tokens = int(starts[-1])
    unused = torch.zeros(tokens, dtype=torch.int64)
    batch = ForwardBatch(
        input_ids=unused,
        positions=unused,
        slot_mapping=unused,
        query_start=starts,
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_table=table,
        logits_rows=unused,
        num_seqs=len(rows),
        num_tokens=tokens,
        max_query_len=max(queries for queries, _ in rows),
        max_seq_len=max(lengths),
        kv_cache=[LayerCache(k, v)],
    )
    return Case(spec, torch.randn(tokens, spec.num_heads, spec.head_dim).to(dtype), batch)


def naive_row(case: Case, row: int) -> Tensor:
    """Attention of one row in float64, with the whole score matrix."""
    spec, batch, cache = case.spec, case.batch, case.batch.kv_cache[0]
    begin, end = batch.query_start[row : row + 2].tolist()
    length = int(batch.seq_lens[row])
    pages = batch.block_table[row, : -(-length // cache.k.shape[2])].long()

    def gathered(pool: Tensor) -> Tensor:
        pool = widen_pages(pool) if pool.dtype == torch.int8 else pool
        flat = pool[pages].transpose(0, 1).reshape(spec.num_kv_heads, -1, spec.head_dim)
        group = spec.num_heads // spec.num_kv_heads
        return flat[:, :length].double().repeat_interleave(group, dim=0)

    q = case.q[begin:end].double().transpose(0, 1)
    scores = q @ gathered(cache.k).transpose(1, 2) * spec.scale
    if spec.soft_cap:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    query = torch.arange(length - (end - begin), length)[:, None]
    key = torch.arange(length)[None]
    visible = key <= query
    if spec.sliding_window:
        visible &= key > query - spec.sliding_window
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return (weights @ gathered(cache.v)).transpose(0, 1).reshape(end - begin, -1)

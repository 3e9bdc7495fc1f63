"""TorchAttention against a loop in float64 over every query and key."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models.harness import empty_cache, make_batch
from pagemill.attention import torch_sdpa
from pagemill.attention.base import AttentionSpec, ForwardBatch, LayerCache
from pagemill.attention.torch_sdpa import TorchAttention
from pagemill.models.base import KVCacheSpec


@dataclass
class Case:
    spec: AttentionSpec
    batch: ForwardBatch
    q: Tensor


def make_case(seed: int, query_lens: list[int] | None = None, **spec: float) -> Case:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    query_lens = query_lens or [rng.choice((1, 1, 1, 2, 5, 17)) for _ in range(rng.randint(1, 6))]
    kv_heads, share, head_dim = rng.choice((1, 2, 3)), rng.choice((1, 2, 4)), rng.choice((8, 24))
    block_size = rng.choice((1, 4, 16))
    rows = [(rng.choice((0, 1, 30)), [0] * n) for n in query_lens]
    per_row = -(-50 // block_size)
    (cache,) = empty_cache(
        [KVCacheSpec(kv_heads, head_dim)], per_row * len(rows), block_size, torch.float32, "cpu"
    )
    cache.k.normal_()
    cache.v.normal_()
    table = torch.randperm(per_row * len(rows)).int().view(len(rows), per_row)
    batch = make_batch(rows, table, [cache], TorchAttention())
    full = AttentionSpec(0, kv_heads * share, kv_heads, head_dim, 0.3, **spec)  # type: ignore[arg-type]
    return Case(full, batch, torch.randn(batch.num_tokens, kv_heads * share, head_dim))


def naive(case: Case) -> Tensor:
    spec, batch = case.spec, case.batch
    out = []
    for row in range(batch.num_seqs):
        start, end = batch.query_start[row : row + 2].tolist()
        length = int(batch.seq_lens[row])
        keys, values = (_row_pages(batch, cache, row, length) for cache in _caches(batch))
        for token in range(start, end):
            position = length - (end - token)
            first = max(0, position - spec.sliding_window + 1) if spec.sliding_window else 0
            for head in range(spec.num_heads):
                kv = head // (spec.num_heads // spec.num_kv_heads)
                query = case.q[token, head].double()
                seen = slice(first, position + 1)
                scores = keys[kv, seen] @ query * spec.scale
                if spec.soft_cap:
                    scores = torch.tanh(scores / spec.soft_cap) * spec.soft_cap
                weights = torch.exp(scores) / torch.exp(scores).sum()
                out.append(weights @ values[kv, seen])
    return torch.cat(out).view(batch.num_tokens, -1)


def _caches(batch: ForwardBatch) -> tuple[Tensor, Tensor]:
    cache: LayerCache = batch.kv_cache[0]
    return cache.k, cache.v


def _row_pages(batch: ForwardBatch, cache: Tensor, row: int, length: int) -> Tensor:
    pages = cache[batch.block_table[row].long()]  # [blocks, kv_heads, block_size, D]
    return pages.transpose(0, 1).flatten(1, 2)[:, :length].double()


def error(case: Case) -> float:
    ours = TorchAttention().run(case.spec, case.q, case.batch)
    return float((ours - naive(case)).abs().max())


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("options", [{}, {"sliding_window": 6}, {"soft_cap": 1.5}], ids=str)
def test_random_shapes(seed: int, options: dict[str, float]) -> None:
    assert error(make_case(seed, **options)) < 1e-5


def test_window_and_cap_together() -> None:
    assert error(make_case(3, [7, 1, 1, 7], sliding_window=4, soft_cap=0.7)) < 1e-5


def test_queries_are_split_when_scores_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(4, [17, 1, 5], soft_cap=2.0)
    monkeypatch.setattr(torch_sdpa, "_MAX_SCORES", 64)
    assert error(case) < 1e-5


def test_lengths_on_the_host_may_be_too_high() -> None:
    """With drafts in flight the host knows upper bounds; the device's lengths decide."""
    case = make_case(5, [1, 3, 1])
    expected = naive(case)
    batch = case.batch
    assert batch.host_seq_lens is not None
    batch.host_seq_lens = batch.host_seq_lens + 3
    batch.max_seq_len += 3
    batch.plan = TorchAttention().plan(batch)
    ours = TorchAttention().run(case.spec, case.q, batch)
    assert (ours - expected).abs().max() < 1e-5


def test_host_copies_are_optional() -> None:
    case = make_case(6, [4, 1, 1, 2])
    case.batch.host_query_start = case.batch.host_seq_lens = None
    case.batch.plan = TorchAttention().plan(case.batch)
    assert error(case) < 1e-5


@pytest.mark.parametrize("query_lens", [[1] * 5, [3, 3], [9]])
def test_uniform_rows_are_one_group(query_lens: list[int]) -> None:
    assert len(make_case(7, query_lens).batch.plan) == 1


def test_decode_rows_are_computed_together() -> None:
    plan = make_case(8, [1, 1, 1, 6, 6, 2]).batch.plan
    assert [(group.num_rows, group.query_len) for group in plan] == [(3, 1), (2, 6), (1, 2)]


def test_scores_of_a_long_row_stay_finite() -> None:
    """Large scores must not overflow the softmax."""
    case = make_case(9, [5, 1])
    case.q.mul_(1e4)
    ours = TorchAttention().run(case.spec, case.q, case.batch)
    assert all(map(math.isfinite, ours.flatten().tolist()))

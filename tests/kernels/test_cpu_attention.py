"""Paged attention in C++ against plain float64 arithmetic, over random shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.cpu_cases import EXAMPLES, Case, close, make_case, naive_row, to_cache
from pagemill.attention.base import AttentionSpec, LayerCache
from pagemill.attention.torch_sdpa import TorchAttention
from pagemill.ops.base import HeadShape
from pagemill.ops.int8_cache import codes_and_scales, row_size
from pagemill.ops.reference import ReferenceOps

pytest.importorskip("pagemill.ops.cpu._native", reason="built without a compiler")

from pagemill.attention.cpu import CpuAttention
from pagemill.ops.cpu.ops import CpuOps


def with_cache(case: Case, kind: torch.dtype) -> Case:
    cache = case.batch.kv_cache[0]
    case.batch.kv_cache = [LayerCache(to_cache(cache.k, kind), to_cache(cache.v, kind))]
    return case


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 120)), min_size=1, max_size=6),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 8]),
    head_dim=st.sampled_from([8, 20, 64, 80, 256]),
    window=st.sampled_from([0, 1, 7, 33]),
    cap=st.sampled_from([0.0, 5.0]),
    block_size=st.sampled_from([4, 16]),
    kinds=st.sampled_from(
        [
            (torch.float32, torch.float32),
            (torch.float32, torch.float16),
            (torch.float32, torch.int8),
            (torch.bfloat16, torch.bfloat16),
            (torch.bfloat16, torch.int8),
        ]
    ),
    seed=st.integers(0, 99),
)
def test_attention(
    rows: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    head_dim: int,
    window: int,
    cap: float,
    block_size: int,
    kinds: tuple[torch.dtype, torch.dtype],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    dtype, cache_type = kinds
    spec = AttentionSpec(0, kv_heads * group, kv_heads, head_dim, head_dim**-0.5, window, cap)
    case = with_cache(make_case(rows, spec, dtype, block_size), cache_type)
    backend = CpuAttention()
    backend.plan(case.batch)
    out = backend.run(spec, case.q, case.batch)
    # Beside int8 codes, queries and weights have 16 bits.
    slack = 10.0 if kinds == (torch.float32, torch.int8) else 1.0
    close(out, torch.cat([naive_row(case, row) for row in range(len(rows))]), slack)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@settings(max_examples=EXAMPLES // 4, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 5), st.integers(300, 2500)), min_size=1, max_size=3),
    group=st.sampled_from([1, 3]),
    head_dim=st.sampled_from([20, 64]),
    window=st.sampled_from([0, 100, 1000]),
    kind=st.sampled_from([torch.float32, torch.int8]),
    seed=st.integers(0, 99),
)
def test_long_rows_are_split(
    rows: list[tuple[int, int]],
    group: int,
    head_dim: int,
    window: int,
    kind: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    spec = AttentionSpec(0, 2 * group, 2, head_dim, head_dim**-0.5, window)
    case = with_cache(make_case(rows, spec, torch.float32, 16), kind)
    case.q *= torch.rand(len(case.q), 1, 1) * 4  # flat and sharp weights
    out = CpuAttention().run(spec, case.q, case.batch)
    slack = 20.0 if kind == torch.int8 else 1.0
    close(out, torch.cat([naive_row(case, row) for row in range(len(rows))]), slack)


@pytest.mark.parametrize("kind", [torch.float16, torch.int8])
def test_a_row_depends_on_neither_threads_nor_other_rows(
    kind: torch.dtype, threads: Callable[[int], None]
) -> None:
    torch.manual_seed(0)
    spec = AttentionSpec(0, 6, 2, 64, 0.125)
    case = with_cache(make_case([(1, 3000), (1, 40), (1, 700)], spec, torch.float32, 16), kind)
    backend, batch, found = CpuAttention(), case.batch, []
    for count in (1, 2, 3, 5):
        threads(count)
        found.append(backend.run(spec, case.q, batch))
    for row in range(3):
        alone = replace(
            batch,
            query_start=torch.tensor([0, 1], dtype=torch.int32),
            seq_lens=batch.seq_lens[row : row + 1],
            block_table=batch.block_table[row : row + 1],
            num_seqs=1,
            num_tokens=1,
        )
        out = backend.run(spec, case.q[row : row + 1], alone)
        assert all(torch.equal(out[0], rows[row]) for rows in found)


@pytest.mark.parametrize("kind", [torch.float32, torch.int8])
def test_attention_ignores_pages_past_the_end(kind: torch.dtype) -> None:
    spec = AttentionSpec(0, 2, 1, 16, 0.25)
    case = with_cache(make_case([(1, 20), (5, 0)], spec, torch.float32, 16), kind)
    backend, cache = CpuAttention(), case.batch.kv_cache[0]
    before = backend.run(spec, case.q, case.batch)
    used = case.batch.block_table[[0, 0, 1], [0, 1, 0]]
    keys, values = (
        codes_and_scales(pages)[1] if kind == torch.int8 else pages for pages in (cache.k, cache.v)
    )
    for page in set(range(len(keys))) - set(used.tolist()):
        keys[page] = values[page] = torch.nan
    keys[used[1], :, 5:] = torch.nan
    assert torch.equal(backend.run(spec, case.q, case.batch), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_reads_the_same_int8_pages(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    spec = AttentionSpec(0, 4, 2, 24, 0.2)
    case = with_cache(make_case([(1, 40), (9, 3)], spec, dtype, 16), torch.int8)
    backend = TorchAttention()
    case.batch.plan = backend.plan(case.batch)
    out = backend.run(spec, case.q, case.batch).float()
    expected = torch.cat([naive_row(case, row) for row in range(2)]).float()
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    tokens=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 10, 64, 80, 256]),
    size=st.sampled_from([0.0, 1e-35, 1.0, 1e5]),
    normed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_int8_cache_write(
    tokens: int, kv_heads: int, head_dim: int, size: float, normed: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = HeadShape(kv_heads, kv_heads, head_dim)
    qkv = size * torch.randn(tokens, 3 * shape.kv_size)
    positions, slots = torch.randint(0, 50, (tokens,)), torch.randperm(64)[:tokens]
    slots[0] = -1
    angles = torch.arange(50)[:, None] * 0.1 ** torch.arange(head_dim // 2)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1).float()
    norms = (torch.rand(head_dim), torch.rand(head_dim)) if normed else (None, None)

    def written(ops: CpuOps | ReferenceOps) -> list[Tensor]:
        pages = (4, kv_heads, 16, row_size(head_dim, torch.int8))
        caches = torch.zeros(2, *pages, dtype=torch.int8)
        q = ops.qk_norm_rope_cache(qkv, positions, slots, cos_sin, shape, *caches, *norms, 1e-6)
        return [q, *(part for cache in caches for part in codes_and_scales(cache))]

    ours, reference = written(CpuOps()), written(ReferenceOps())
    for actual, expected in zip(ours, reference, strict=True):
        codes = actual.dtype == torch.int8  # next to the middle of two, either is right
        bounds = (0.0, 1.0) if codes else (2e-5, 2e-5 * size)
        torch.testing.assert_close(actual.float(), expected.float(), rtol=bounds[0], atol=bounds[1])
    assert (ours[1] != reference[1]).float().mean() < 0.02
    assert torch.equal(ours[3], reference[3])  # values are only rounded

"""Both paged attention kernels, and the backend that chooses, against plain torch in float64."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from kernels.triton_harness import DEVICES, HALF_TYPES, TOLERANCE, assert_near
from pagemill.attention.base import AttentionSpec, ForwardBatch, LayerCache
from pagemill.attention.triton import TritonAttention, choose_splits
from pagemill.ops.base import HeadShape
from pagemill.ops.triton.counters import Counters
from pagemill.ops.triton.packed_attention import PackedConfig, packed_attention
from pagemill.ops.triton.rope import qk_norm_rope_cache
from pagemill.ops.triton.split_attention import RopeInput, SplitPlan, split_attention

BLOCK_SIZE = 16


def make_batch(
    spec: AttentionSpec,
    rows: list[tuple[int, int]],  # (query_len, seq_len)
    device: str,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, ForwardBatch]:
    """Random q [T, H, D] and a batch whose rows' pages lie scattered in the cache."""
    query_lens = [q for q, _ in rows]
    seq_lens = [s for _, s in rows]
    counts = [-(-s // BLOCK_SIZE) for s in seq_lens]
    total = sum(counts) + 3
    pages = torch.randperm(total)
    table = torch.zeros(len(rows), max([*counts, 1]), dtype=torch.int32)
    slots, positions, used = [], [], 0
    for row, (query_len, seq_len) in enumerate(rows):
        own = pages[used : used + counts[row]]
        used += counts[row]
        table[row, : counts[row]] = own
        for position in range(seq_len - query_len, seq_len):
            positions.append(position)
            block = int(own[position // BLOCK_SIZE])
            slots.append(block * BLOCK_SIZE + position % BLOCK_SIZE)
    shape = (total, spec.num_kv_heads, BLOCK_SIZE, spec.head_dim)
    cache_type = cache_dtype or dtype
    k, v = (torch.randn(shape, device=device).to(cache_type) for _ in "kv")
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    num_tokens = sum(query_lens)
    batch = ForwardBatch(
        input_ids=torch.zeros(num_tokens, dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
        query_start=starts.to(torch.int32).to(device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        block_table=table.to(device),
        logits_rows=torch.zeros(0, dtype=torch.int64, device=device),
        num_seqs=len(rows),
        num_tokens=num_tokens,
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
        kv_cache=[LayerCache(k, v)],
    )
    q = torch.randn(num_tokens, spec.num_heads, spec.head_dim, device=device).to(dtype)
    return q, batch


def reference(spec: AttentionSpec, q: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
    """Gather each row's pages and attend, in float64."""
    outputs = []
    cache = batch.kv_cache[spec.layer_index]
    for row in range(batch.num_seqs):
        begin, end = batch.query_start[row].item(), batch.query_start[row + 1].item()
        seq_len = batch.seq_lens[row].item()
        pages = batch.block_table[row].long()
        k, v = (
            t[pages].transpose(1, 2).flatten(0, 1)[:seq_len].double() for t in (cache.k, cache.v)
        )
        group = spec.num_heads // spec.num_kv_heads
        k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))  # [S, H, D]
        scores = torch.einsum("qhd,khd->hqk", q[begin:end].double(), k) * spec.scale
        if spec.soft_cap:
            scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
        position = torch.arange(seq_len - (end - begin), seq_len, device=q.device)[:, None]
        key = torch.arange(seq_len, device=q.device)[None, :]
        hidden = key > position
        if spec.sliding_window:
            hidden |= key <= position - spec.sliding_window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
    return torch.cat(outputs)


def spec_of(
    heads: int = 4, kv: int = 2, dim: int = 64, window: int = 0, cap: float = 0.0
) -> AttentionSpec:
    return AttentionSpec(0, heads, kv, dim, dim**-0.5, window, cap)


def zeros(device: str) -> torch.Tensor:
    return torch.zeros(256, dtype=torch.int32, device=device)


SPECS = [
    spec_of(),
    spec_of(7, 1, 80),
    spec_of(3, 3, 96, window=20),
    spec_of(4, 1, 128, cap=5.0),
    spec_of(2, 1, 256, window=33, cap=50.0),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("splits", [1, 4])
def test_split_attention_of_decode_rows(device: str, spec: AttentionSpec, splits: int) -> None:
    q, batch = make_batch(spec, [(1, 1), (1, 70), (1, 16), (1, 133)], device)
    used = zeros(device)
    out = split_attention(spec, q, batch, batch.kv_cache[0], used, SplitPlan(splits, 16, 16), 1)
    assert_near(out, reference(spec, q, batch), 1e-4)
    assert not used.any()  # ready for the next layer


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", SPECS)
def test_split_attention_of_rows_with_drafts(device: str, spec: AttentionSpec) -> None:
    q, batch = make_batch(spec, [(3, 3), (2, 70), (1, 40), (3, 91)], device)
    plan = SplitPlan(4, 16, 16)
    out = split_attention(spec, q, batch, batch.kv_cache[0], zeros(device), plan, 3)
    assert_near(out, reference(spec, q, batch), 1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", SPECS)
def test_packed_attention(device: str, spec: AttentionSpec) -> None:
    q, batch = make_batch(spec, [(5, 5), (1, 40), (70, 70), (33, 100), (1, 1)], device)
    out = packed_attention(spec, q, batch, batch.kv_cache[0], config=PackedConfig(32, 32, 4, 1))
    assert_near(out, reference(spec, q, batch), 1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_packed_attention_with_the_default_tiles(device: str, dtype: torch.dtype) -> None:
    spec = spec_of(4, 1, 64)
    q, batch = make_batch(spec, [(200, 230), (3, 90)], device, dtype)
    out = packed_attention(spec, q, batch, batch.kv_cache[0])
    assert_near(out, reference(spec, q, batch), TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
def test_backend_on_random_steps(device: str) -> None:
    chance = random.Random(1)
    backend = TritonAttention()
    for _ in range(6):
        spec = chance.choice(SPECS[:4])
        longest = chance.choice([1, 4, 40])
        rows = []
        for _ in range(chance.randint(1, 4)):
            query_len = chance.randint(1, longest)
            rows.append((query_len, query_len + chance.randint(0, 60)))
        q, batch = make_batch(spec, rows, device)
        if chance.random() < 0.5:
            batch.host_query_start = batch.query_start.cpu().numpy()
        batch.plan = backend.plan(batch)
        assert_near(backend.run(spec, q, batch), reference(spec, q, batch), 1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_counters_grow(device: str) -> None:
    counters = Counters()
    few, many = counters.get(torch.device(device), 8), counters.get(torch.device(device), 100_000)
    assert few.numel() < 100_000 <= many.numel()
    assert not many.any()
    assert counters.get(torch.device(device), 8) is many


@pytest.mark.parametrize("device", DEVICES)
def test_padded_rows_give_zeros(device: str) -> None:
    spec = spec_of()
    q, batch = make_batch(spec, [(1, 30), (1, 1)], device)
    batch.seq_lens[1] = 0
    out = TritonAttention().run(spec, q, batch)
    assert not out[1].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", [[(70, 70), (1, 40), (33, 100), (1, 1)], [(1, 9)], [(2, 2)]])
@pytest.mark.parametrize("num_rows", [4, 32])
def test_padding_of_a_captured_step_is_passed_over(
    device: str, lengths: list[tuple[int, int]], num_rows: int
) -> None:
    """Bounds larger than the step, tokens of no row, and rows without tokens at the end."""
    spec, num_tokens = spec_of(4, 2, 64), 192
    q, batch = make_batch(spec, lengths, device)
    expected = reference(spec, q, batch)
    padding, table = num_rows - len(lengths), batch.block_table
    nowhere = table.new_full((padding, table.shape[1]), -9)
    padded = replace(
        batch,
        query_start=torch.cat([batch.query_start, batch.query_start[-1:].expand(padding)]),
        seq_lens=torch.cat([batch.seq_lens, batch.seq_lens.new_zeros(padding)]),
        block_table=torch.cat([table, nowhere]),
        num_seqs=num_rows,
        num_tokens=num_tokens,
        max_query_len=num_tokens,
        max_seq_len=4096,
    )
    backend = TritonAttention()
    padded.plan = backend.plan(padded)
    q = torch.cat([q, q.new_full((num_tokens - len(q), *q.shape[1:]), torch.nan)])
    assert_near(backend.run(spec, q, padded)[: batch.num_tokens], expected, 1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_fp8_cache(device: str) -> None:
    spec = spec_of(4, 2, 64)
    q, batch = make_batch(spec, [(1, 60), (1, 17)], device, HALF_TYPES[0], torch.float8_e4m3fn)
    out = TritonAttention().run(spec, q, batch)
    assert_near(out, reference(spec, q, batch), 2e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_attention_with_rope_equals_the_two_steps(
    device: str, normed: bool, spec: AttentionSpec
) -> None:
    _, batch = make_batch(spec, [(1, 1), (1, 70), (1, 17), (1, 32)], device)
    shape = HeadShape(spec.num_heads, spec.num_kv_heads, spec.head_dim)
    qkv = torch.randn(4, shape.q_size + 2 * shape.kv_size, device=device)
    cos_sin = torch.randn(80, spec.head_dim, device=device)
    weights = [torch.rand(spec.head_dim, device=device) + 0.5 for _ in "qk"]
    q_norm, k_norm = weights if normed else (None, None)
    backend = TritonAttention()
    cache = batch.kv_cache[0]
    fused_cache = LayerCache(cache.k.clone(), cache.v.clone())
    slots, caches, norms = batch.slot_mapping, (cache.k, cache.v), (q_norm, k_norm)
    q = qk_norm_rope_cache(qkv, batch.positions, slots, cos_sin, shape, *caches, *norms, 1e-6)
    expected = backend.run(spec, q, batch)
    batch.kv_cache = [fused_cache]
    actual = backend.run_with_rope(spec, qkv, batch, RopeInput(cos_sin, q_norm, k_norm, 1e-6))
    assert_near(actual, expected, 1e-4)
    assert_near(fused_cache.k, cache.k, 1e-5)
    assert torch.equal(fused_cache.v, cache.v)


def test_splits_fill_the_device_and_no_more() -> None:
    def splits(pairs: int, longest: int = 4096) -> int:
        return choose_splits(pairs, 132, longest).num_splits

    assert [splits(pairs) for pairs in (8, 32, 64, 512, 2048)] == [64, 64, 4, 2, 1]
    assert splits(2048, longest=32_768) == 4

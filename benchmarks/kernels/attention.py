"""Paged attention: decode by cache bandwidth, prefill by products per second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from shapes import LLAMA_8B, QWEN3_06B, ModelShape
from timing import Limits, Result, copies, graph_time, relative_error
from torch import Tensor

from pagemill.attention.base import ForwardBatch, LayerCache
from pagemill.attention.torch_sdpa import TorchAttention
from pagemill.attention.triton import TritonAttention, choose_splits
from pagemill.ops.triton.packed_attention import PackedConfig, packed_attention, packed_config
from pagemill.ops.triton.split_attention import SplitPlan, split_attention

BLOCK_SIZE = 16


def make_batch(
    shape: ModelShape, query_lens: list[int], seq_lens: list[int], num_caches: int = 1
) -> tuple[Tensor, list[ForwardBatch]]:
    """q and one batch per copy of the cache; pages are scattered."""
    blocks = [-(-n // BLOCK_SIZE) for n in seq_lens]
    total, widest = sum(blocks), max(blocks)
    pages = torch.randperm(total).int()
    table = torch.zeros(len(seq_lens), widest, dtype=torch.int32)
    for row, (start, count) in enumerate(
        zip(torch.tensor([0, *blocks]).cumsum(0).tolist(), blocks, strict=False)
    ):
        table[row, :count] = pages[start : start + count]
    start = torch.tensor([0, *query_lens]).cumsum(0).int()
    num_tokens = sum(query_lens)
    positions = torch.cat(
        [torch.arange(s - q, s) for q, s in zip(query_lens, seq_lens, strict=True)]
    )
    row_of = torch.repeat_interleave(torch.arange(len(seq_lens)), torch.tensor(query_lens))
    slots = table[row_of, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    heads = shape.heads
    size = (total, heads.num_kv_heads, BLOCK_SIZE, heads.head_dim)
    caches = [
        LayerCache(*(torch.randn(size, device="cuda", dtype=torch.bfloat16) for _ in "kv"))
        for _ in range(num_caches)
    ]
    batch = ForwardBatch(
        input_ids=torch.zeros(num_tokens, dtype=torch.int64, device="cuda"),
        positions=positions.cuda(),
        slot_mapping=slots.cuda(),
        query_start=start.cuda(),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32).cuda(),
        block_table=table.cuda(),
        logits_rows=torch.zeros(0, dtype=torch.int64, device="cuda"),
        num_seqs=len(seq_lens),
        num_tokens=num_tokens,
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
    )
    q = torch.randn(
        num_tokens, heads.num_heads, heads.head_dim, device="cuda", dtype=torch.bfloat16
    )
    return q, [replace(batch, kv_cache=[cache]) for cache in caches]


def _reference(shape: ModelShape, q: Tensor, batch: ForwardBatch) -> Tensor:
    backend = TorchAttention()
    batch = replace(batch, attention=backend)
    batch.plan = backend.plan(batch)
    return backend.run(shape.spec(), q, batch)


def _split_variants(base: SplitPlan) -> list[SplitPlan]:
    return [
        base,
        replace(base, num_stages=5),
        replace(base, block_n=32, num_stages=5),
        replace(base, block_n=32, num_warps=2, num_stages=3),
        replace(base, block_n=32, num_warps=2, num_stages=5),
        replace(base, block_n=128, num_warps=8, num_stages=3),
        replace(base, num_splits=max(1, base.num_splits // 4)),
    ]


def _decode(shape: ModelShape, seq_lens: list[int], name: str, limits: Limits) -> Iterator[Result]:
    heads = shape.heads
    num_bytes = sum(seq_lens) * heads.kv_size * 2 * 2
    rows = len(seq_lens)
    q, batches = make_batch(shape, [1] * rows, seq_lens, copies(num_bytes, least=2, most=32))
    expected = _reference(shape, q, batches[0])
    counters = torch.zeros(65_536, dtype=torch.int32, device="cuda")
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    base = choose_splits(rows * heads.num_kv_heads, sms, max(seq_lens))
    limit = num_bytes / limits.bandwidth * 1e6
    for number, plan in enumerate(_split_variants(base)):

        def call(batch: ForwardBatch, plan: SplitPlan = plan) -> Tensor:
            cache = batch.kv_cache[0]
            return split_attention(shape.spec(), q, batch, cache, counters, plan, 1)

        error = relative_error(call(batches[0]), expected)
        calls: list[Callable[[], object]] = [lambda b=b, c=call: c(b) for b in batches]
        variant = (
            f"s{plan.num_splits}/{plan.min_chunk} n{plan.block_n} w{plan.num_warps} "
            f"st{plan.num_stages}" + (" *" if number == 0 else "")
        )
        yield Result(name, variant, graph_time(calls) * 1e6, limit, error)


def decode_results(limits: Limits) -> Iterator[Result]:
    yield from _decode(LLAMA_8B, [1024] * 256, "8b decode 256 x 1024", limits)
    spread = torch.randint(100, 2048, (256,), generator=torch.Generator().manual_seed(0))
    yield from _decode(LLAMA_8B, spread.tolist(), "8b decode 256 x 100..2047", limits)
    yield from _decode(QWEN3_06B, [384], "0.6b decode 1 x 384", limits)
    yield from _decode(LLAMA_8B, [8192], "8b decode 1 x 8192", limits)
    yield from _decode(LLAMA_8B, [512] * 32, "8b decode 32 x 512", limits)


def _causal_flops(shape: ModelShape, query_lens: list[int], seq_lens: list[int]) -> float:
    pairs = sum(q * (s - q) + q * (q + 1) / 2 for q, s in zip(query_lens, seq_lens, strict=True))
    return 4 * pairs * shape.heads.q_size


def _prefill(
    shape: ModelShape, query_lens: list[int], seq_lens: list[int], name: str, limits: Limits
) -> Iterator[Result]:
    q, (batch,) = make_batch(shape, query_lens, seq_lens)
    expected = _reference(shape, q, batch)
    flops = _causal_flops(shape, query_lens, seq_lens)
    limit = flops / limits.flops * 1e6
    base = packed_config(shape.heads.head_dim, q.dtype)
    configs = [
        base,
        PackedConfig(128, 64, 4, 3, block_tail=16),
        PackedConfig(128, 64, 4, 4),
        PackedConfig(128, 128, 8, 3),
        PackedConfig(64, 64, 4, 3),
        PackedConfig(128, 32, 4, 5),
    ]
    for number, config in enumerate(configs):

        def call(config: PackedConfig = config) -> Tensor:
            return packed_attention(shape.spec(), q, batch, batch.kv_cache[0], config=config)

        error = relative_error(call(), expected)
        seconds = graph_time([call] * 4)
        variant = (
            f"m{config.block_m} n{config.block_n} w{config.num_warps} st{config.num_stages} "
            f"{flops / seconds / 1e12:.0f}TF" + (" *" if number == 0 else "")
        )
        yield Result(name, variant, seconds * 1e6, limit, error)


def prefill_results(limits: Limits) -> Iterator[Result]:
    lens = [1024] * 16
    yield from _prefill(LLAMA_8B, lens, lens, "8b prefill 16 x 1024", limits)
    yield from _prefill(LLAMA_8B, [2048], [8192], "8b chunk 2048 of 8192", limits)
    yield from _mixed(limits)


def _mixed(limits: Limits) -> Iterator[Result]:
    """The backend as it is used: 200 decode rows beside a prompt's chunk."""
    shape = LLAMA_8B
    query_lens, seq_lens = [1] * 200 + [1024], [1024] * 200 + [1024]
    q, (batch,) = make_batch(shape, query_lens, seq_lens)
    backend = TritonAttention()
    batch.plan = backend.plan(batch)
    limit = 200 * 1024 * shape.heads.kv_size * 4 / limits.bandwidth
    limit += _causal_flops(shape, [1024], [1024]) / limits.flops
    error = relative_error(backend.run(shape.spec(), q, batch), _reference(shape, q, batch))
    two = graph_time([lambda: backend.run(shape.spec(), q, batch)] * 4)
    yield Result("8b mixed 200 x 1 + 1024", "two launches *", two * 1e6, limit * 1e6, error)
    cache = batch.kv_cache[0]
    one = graph_time([lambda: packed_attention(shape.spec(), q, batch, cache)] * 4)
    yield Result("8b mixed 200 x 1 + 1024", "packed only", one * 1e6, limit * 1e6, error)

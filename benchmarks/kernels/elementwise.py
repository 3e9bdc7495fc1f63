"""Norms, activations, rope with its cache write, and sampling, by bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from attention import make_batch
from shapes import QWEN3_06B, SHAPES, ModelShape
from timing import Limits, Result, copies, graph_time, relative_error
from torch import Tensor

from pagemill.ops.reference import ReferenceOps
from pagemill.ops.sampling import Filters, SamplingRows
from pagemill.ops.triton.ops import TritonOps

OPS = TritonOps()
REFERENCE = ReferenceOps()
BF16 = {"device": "cuda", "dtype": torch.bfloat16}
TOKENS = (1, 256, 8192)


def _time(
    case: str, num_bytes: int, calls: list[Callable[[], object]], error: float, limits: Limits
) -> Result:
    limit = num_bytes / limits.bandwidth * 1e6
    return Result(case, "triton", graph_time(calls) * 1e6, limit, error)


def _norm(shape: ModelShape, tokens: int, limits: Limits) -> Result:
    num_bytes = tokens * shape.hidden * 2 * 4
    sets = [torch.randn(2, tokens, shape.hidden, **BF16) for _ in range(copies(num_bytes, 8))]
    weight = torch.rand(shape.hidden, device="cuda") + 0.5
    x, residual = sets[0]
    expected = REFERENCE.add_rms_norm(x, residual.clone(), weight, 1e-6)
    error = relative_error(OPS.add_rms_norm(x, residual.clone(), weight, 1e-6), expected)
    calls: list[Callable[[], object]] = [
        lambda s=s: OPS.add_rms_norm(s[0], s[1], weight, 1e-6) for s in sets
    ]
    return _time(f"{shape.name} add_rms_norm T={tokens}", num_bytes, calls, error, limits)


def _silu(shape: ModelShape, tokens: int, limits: Limits) -> Result:
    num_bytes = tokens * shape.intermediate * 2 * 3
    sets = [
        torch.randn(tokens, 2 * shape.intermediate, **BF16) for _ in range(copies(num_bytes, 8))
    ]
    error = relative_error(OPS.silu_mul(sets[0]), REFERENCE.silu_mul(sets[0]))
    calls: list[Callable[[], object]] = [lambda s=s: OPS.silu_mul(s) for s in sets]
    return _time(f"{shape.name} silu_mul T={tokens}", num_bytes, calls, error, limits)


def _rope(shape: ModelShape, tokens: int, limits: Limits) -> Result:
    heads = shape.heads
    num_bytes = 2 * tokens * shape.qkv_size * 2
    query_lens = [tokens] if tokens > 256 else [1] * tokens
    _, (batch,) = make_batch(shape, query_lens, [max(n, 16) for n in query_lens])
    cache = batch.kv_cache[0]
    cos_sin = torch.randn(16_384, heads.head_dim, device="cuda")
    weight = torch.rand(heads.head_dim, device="cuda") if shape.qk_norm else None
    sets = [torch.randn(tokens, shape.qkv_size, **BF16) for _ in range(copies(num_bytes, 8))]

    def call(ops: TritonOps | ReferenceOps, qkv: Tensor) -> Tensor:
        slots, caches = batch.slot_mapping, (cache.k, cache.v)
        return ops.qk_norm_rope_cache(
            qkv, batch.positions, slots, cos_sin, heads, *caches, weight, weight, 1e-6
        )

    expected = call(REFERENCE, sets[0])
    expected_k = cache.k.clone()
    error = relative_error(call(OPS, sets[0]), expected)
    error = max(error, relative_error(cache.k, expected_k))
    calls: list[Callable[[], object]] = [lambda s=s: call(OPS, s) for s in sets]
    return _time(f"{shape.name} qk_norm_rope_cache T={tokens}", num_bytes, calls, error, limits)


def elementwise_results(limits: Limits) -> Iterator[Result]:
    for shape in SHAPES:
        for tokens in TOKENS:
            yield _norm(shape, tokens, limits)
            yield _silu(shape, tokens, limits)
            yield _rope(shape, tokens, limits)


def _rows(count: int, **values: float) -> SamplingRows:
    def full(name: str, default: float) -> Tensor:
        return torch.full((count,), values.get(name, default), device="cuda")

    return SamplingRows(
        temperature=full("temperature", 1.0),
        top_k=full("top_k", 0).int(),
        top_p=full("top_p", 1.0),
        min_p=full("min_p", 0.0),
        uniform=torch.rand(count, device="cuda"),
    )


def sampling_results(limits: Limits) -> Iterator[Result]:
    """The limit is one read of the logits."""
    width = QWEN3_06B.vocab
    for count in (1, 256):
        logits = [
            3 * torch.randn(count, width, **BF16) for _ in range(copies(count * width * 2, 2, 8))
        ]
        limit = count * width * 2 / limits.bandwidth * 1e6
        wrong = float((OPS.argmax(logits[0]) != logits[0].argmax(-1)).float().mean())
        calls: list[Callable[[], object]] = [lambda x=x: OPS.argmax(x) for x in logits]
        case = f"sampling n={count}"
        yield Result(case, "argmax", graph_time(calls) * 1e6, limit, wrong)
        calls = [lambda x=x: x.argmax(-1) for x in logits]
        yield Result(case, "torch argmax", graph_time(calls) * 1e6, limit, 0.0)
        for name, rows, filters in (
            ("temperature", _rows(count), Filters()),
            ("top_k 50", _rows(count, top_k=50), Filters(top_k=True)),
            ("top_p 0.9", _rows(count, top_p=0.9), Filters(top_p=True)),
            ("top_k 50, top_p 0.9", _rows(count, top_k=50, top_p=0.9), Filters(True, True)),
        ):
            calls = [lambda x=x, r=rows, f=filters: OPS.sample(x, r, f) for x in logits]
            yield Result(case, name, graph_time(calls) * 1e6, limit, 0.0)
        calls = [lambda x=x: x.float().sort(-1) for x in logits]
        yield Result(case, "torch sort", graph_time(calls) * 1e6, limit, 0.0)

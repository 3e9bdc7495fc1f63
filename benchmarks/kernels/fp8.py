"""Float8 linear layers: the own kernel beside cuBLAS, and the rounding of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from shapes import LLAMA_8B, QWEN3_06B, ModelShape
from timing import Limits, Result, copies, graph_time, relative_error
from torch import Tensor
from torch.nn import functional as F

from pagemill.ops.fp8 import GROUP
from pagemill.ops.reference import ReferenceOps
from pagemill.ops.triton.fp8_linear import Fp8Config, fp8_config, fp8_linear, quantize
from pagemill.quant.fp8 import quantize as quantize_weight

TOKENS = (1, 16, 256, 8192)
Pair = tuple[Tensor, Tensor]


def _sides(shape: ModelShape) -> list[tuple[str, int, int]]:
    return [
        ("qkv", shape.qkv_size, shape.hidden),
        ("o", shape.hidden, shape.heads.q_size),
        ("gate_up", 2 * shape.intermediate, shape.hidden),
        ("down", shape.hidden, shape.intermediate),
    ]


def _weights(rows: int, width: int, groups: int) -> list[Pair]:
    plain = 0.05 * torch.randn(rows, width, device="cuda")
    values, scale = quantize_weight(plain, groups)
    return [(values.clone(), scale.clone()) for _ in range(copies(rows * width, 2, 16))]


def _variants(num_tokens: int, rows: int, grouped: bool) -> list[Fp8Config | None]:
    """None is what `fp8_linear` does by itself."""
    base = fp8_config(num_tokens, rows, grouped)
    if num_tokens > 16 or grouped:
        return [None, replace(base, num_stages=base.num_stages - 1)]
    return [
        None,
        replace(base, block_n=32),
        replace(base, block_n=64),
        replace(base, block_k=128),
        replace(base, block_k=512, num_stages=3),
        replace(base, num_stages=6),
    ]


def _linear(name: str, num_tokens: int, pairs: list[Pair], limits: Limits) -> Iterator[Result]:
    (rows, width), groups = pairs[0][0].shape, pairs[0][1].shape[1]
    x = torch.randn(num_tokens, width, device="cuda", dtype=torch.bfloat16)
    expected = ReferenceOps().fp8_linear(x[:64].float(), *pairs[0], None)
    limit = max(rows * width / limits.bandwidth, num_tokens * rows * width / limits.flops) * 1e6
    for config in _variants(num_tokens, rows, groups > 1):

        def call(pair: Pair, config: Fp8Config | None = config) -> Tensor:
            return fp8_linear(x, *pair, None, config)

        error = relative_error(call(pairs[0])[:64], expected)
        calls: list[Callable[[], object]] = [lambda p=p, c=call: c(p) for p in pairs]
        shown = "chosen *" if config is None else f"n{config.block_n} k{config.block_k}"
        shown += "" if config is None else f" w{config.num_warps} st{config.num_stages}"
        yield Result(name, shown, graph_time(calls) * 1e6, limit, error)
    weight = pairs[0][0].to(torch.bfloat16)
    seconds = graph_time([lambda: F.linear(x, weight)] * 4)
    yield Result(name, "bf16", seconds * 1e6, limit, 0.0)


def fp8_results(limits: Limits) -> Iterator[Result]:
    """The limit is one read of the weights, or the products at twice the rate of bf16."""
    for shape in (QWEN3_06B, LLAMA_8B):
        for side, rows, width in _sides(shape):
            pairs = _weights(rows, width, 1)
            for num_tokens in TOKENS:
                name = f"{shape.name} fp8 {side} T={num_tokens}"
                yield from _linear(name, num_tokens, pairs, limits)
    pairs = _weights(LLAMA_8B.hidden, LLAMA_8B.hidden, LLAMA_8B.hidden // GROUP)
    for num_tokens in TOKENS:
        yield from _linear(f"8b fp8 o, blocks T={num_tokens}", num_tokens, pairs, limits)
    yield from _rounding(limits)


def _rounding(limits: Limits) -> Iterator[Result]:
    for width in (LLAMA_8B.hidden, LLAMA_8B.intermediate):
        for num_tokens in (1, 8192):
            x = torch.randn(num_tokens, width, device="cuda", dtype=torch.bfloat16)
            limit = 3 * x.numel() / limits.bandwidth * 1e6
            seconds = graph_time([lambda x=x: quantize(x, 1)] * 4)
            yield Result(f"fp8 rounding {num_tokens} x {width}", "", seconds * 1e6, limit, 0.0)

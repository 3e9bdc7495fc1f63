"""Linear layers of one token: own kernels in several shapes, and cuBLAS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from shapes import SHAPES, ModelShape
from timing import Limits, Result, copies, graph_time, relative_error
from torch import Tensor
from torch.nn import functional as F

from pagemill.ops.reference import ReferenceOps
from pagemill.ops.triton.vector_linear import (
    VectorConfig,
    norm_vector_linear,
    vector_config,
    vector_linear,
)

EPS = 1e-6
REFERENCE = ReferenceOps()
BF16 = {"device": "cuda", "dtype": torch.bfloat16}


def _layers(shape: ModelShape) -> list[tuple[str, int, int, str]]:
    """(name, out, in, kind) of a model's linear layers; kind says what is fused in."""
    return [
        ("norm+qkv", shape.qkv_size, shape.hidden, "norm"),
        ("o+add", shape.hidden, shape.heads.q_size, "add"),
        ("norm+gate_up+silu", shape.intermediate, shape.hidden, "gate"),
        ("down+add", shape.hidden, shape.intermediate, "add"),
        ("norm+lm_head", shape.vocab, shape.hidden, "norm"),
    ]


def _variants(out: int, inner: int, gated: bool) -> list[VectorConfig]:
    base = vector_config(out, inner, gated)
    return [
        base,
        VectorConfig(base.block_n * 2, base.num_warps, base.programs_per_sm),
        VectorConfig(max(1, base.block_n // 2), base.num_warps, base.programs_per_sm),
        VectorConfig(base.block_n * 2, 8, 4),
        VectorConfig(base.block_n, base.num_warps, 4),
        VectorConfig(base.block_n, base.num_warps, 64),
    ]


def _expected(kind: str, x: Tensor, norm: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    x, weight = x.float(), weight.float()
    if kind == "add":
        return residual.float() + F.linear(x, weight)
    y = F.linear(REFERENCE.rms_norm(x, norm, EPS), weight)
    return REFERENCE.silu_mul(y) if kind == "gate" else y


def _vector_call(
    kind: str, x: Tensor, norm: Tensor, weight: Tensor, residual: Tensor, config: VectorConfig
) -> Tensor:
    if kind == "add":
        return vector_linear(x, weight, None, add_to=residual, config=config)
    activation = "silu" if kind == "gate" else None
    return norm_vector_linear(x, norm, EPS, weight, None, activation, config)


def _weights(rows: int, inner: int) -> list[Tensor]:
    return [torch.randn(rows, inner, **BF16) / inner**0.5 for _ in range(copies(rows * inner * 2))]


def _vector_case(case: str, out: int, inner: int, kind: str, limits: Limits) -> Iterator[Result]:
    weights = _weights(out * 2 if kind == "gate" else out, inner)
    x, residual = torch.randn(1, inner, **BF16), torch.randn(1, out, **BF16)
    scratch = residual.clone()
    norm = torch.rand(inner, device="cuda") + 0.5
    expected = _expected(kind, x, norm, weights[0], residual)
    limit = weights[0].numel() * 2 / limits.bandwidth * 1e6
    for number, config in enumerate(_variants(out, inner, kind == "gate")):
        actual = _vector_call(kind, x, norm, weights[0], residual.clone(), config)
        calls: list[Callable[[], object]] = [
            partial(_vector_call, kind, x, norm, weight, scratch, config) for weight in weights
        ]
        variant = f"n{config.block_n} w{config.num_warps} p{config.programs_per_sm}"
        variant += " *" if number == 0 else ""
        error = relative_error(actual, expected)
        yield Result(case, variant, graph_time(calls) * 1e6, limit, error)
    cublas: list[Callable[[], object]] = [partial(F.linear, x, weight) for weight in weights]
    yield Result(case, "cuBLAS, product only", graph_time(cublas) * 1e6, limit, 0.0)


def vector_results(limits: Limits) -> Iterator[Result]:
    """One token: products with their fused neighbours."""
    for shape in SHAPES:
        for name, out, inner, kind in _layers(shape):
            case = f"{shape.name} m=1 {name} {out}x{inner}"
            yield from _vector_case(case, out, inner, kind, limits)

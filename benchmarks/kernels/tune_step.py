"""Choose launch shapes where they count: inside a whole decode step of one caller.

    PYTHONPATH=src python3 benchmarks/kernels/tune_step.py [0.6b|8b]

Tries the variants of one kernel after the other in the fused step of `decoder.py`, keeping the best
so far. A kernel's own time says little here, as neighbours overlap.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from unittest.mock import patch

import torch
from attention import make_batch
from decoder import make_decoder
from shapes import SHAPES, ModelShape
from timing import graph_time
from torch import Tensor

from pagemill.ops.fused import Stream
from pagemill.ops.triton.ops import TritonOps
from pagemill.ops.triton.split_attention import SplitPlan
from pagemill.ops.triton.vector_linear import (
    MAX_WIDTH,
    VectorConfig,
    norm_vector_linear,
    vector_config,
    vector_linear,
)

CONTEXT = 384
SPLIT_PLANS = [
    SplitPlan(splits, chunk, block_n, warps, stages, early)
    for splits, chunk, block_n, warps, stages, early in (
        (64, 64, 64, 4, 3, False),
        (64, 64, 64, 4, 3, True),
        (16, 64, 64, 4, 3, True),
        (64, 32, 32, 4, 3, True),
        (32, 32, 32, 4, 3, True),
        (32, 64, 64, 8, 3, True),
        (16, 128, 64, 4, 3, True),
        (8, 64, 64, 4, 3, True),
        (4, 128, 128, 8, 3, True),
        (16, 32, 32, 2, 3, True),
        (64, 16, 16, 1, 3, True),
    )
]


class TunedOps(TritonOps):
    """The kernels with launch shapes by the size of the matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.configs: dict[tuple[int, int], VectorConfig] = {}

    def _config(self, weight: Tensor, gated: bool = False) -> VectorConfig:
        out, inner = weight.shape[0] // (1 + gated), weight.shape[1]
        return self.configs.setdefault((out, inner), vector_config(out, inner, gated))

    def norm_linear(
        self, stream: Stream, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        config = self._config(weight)
        return norm_vector_linear(stream.values, stream.norm, eps, weight, bias, config=config)

    def norm_gate_up(self, stream: Stream, eps: float, weight: Tensor, activation: str) -> Tensor:
        values, norm, config = stream.values, stream.norm, self._config(weight, gated=True)
        return norm_vector_linear(values, norm, eps, weight, activation=activation, config=config)

    def linear_add(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stream: Stream, next_norm: Tensor
    ) -> None:
        vector_linear(x, weight, bias, add_to=stream.values, config=self._config(weight))
        stream.norm = next_norm

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return vector_linear(x, weight, bias, config=self._config(weight))


def variants(base: VectorConfig, inner: int) -> list[VectorConfig]:
    """The neighbours of a launch shape."""
    rows = {max(1, base.block_n // 2), base.block_n, 2 * base.block_n}
    per_sm = (4, 8) if inner <= MAX_WIDTH else (4,)
    shapes = itertools.product(sorted(rows), (4, 8), per_sm)
    return [VectorConfig(*shape) for shape in shapes if VectorConfig(*shape) != base]


def tune(shape: ModelShape) -> None:
    decoder, ops = make_decoder(shape), TunedOps()
    _, batches = make_batch(shape, [1], [CONTEXT], shape.layers)
    batch = replace(batches[0], kv_cache=[b.kv_cache[0] for b in batches])
    hidden = torch.randn(1, shape.hidden, device="cuda", dtype=torch.bfloat16)
    plan = SPLIT_PLANS[0]

    def seconds() -> float:
        with patch("pagemill.attention.triton.choose_splits", lambda *_: plan):
            return graph_time([lambda: ops.argmax(decoder.fused(ops, hidden, batch))])

    def attempt(name: str, value: object) -> float:
        try:
            time = seconds()
        except RuntimeError as error:  # too many registers, say
            print(f"{name} {value}: {error}")
            return float("inf")
        print(f"{shape.name} {name:16s} {time * 1e6:8.1f} us {value}", flush=True)
        return time

    best = seconds()
    print(f"{shape.name} start {best * 1e6:.1f} us, again {seconds() * 1e6:.1f} us")
    times = []
    for plan in SPLIT_PLANS:
        times.append(attempt("attention", plan))  # noqa: PERF401 - `seconds` reads the variable
    best = min(times)
    plan = SPLIT_PLANS[times.index(best)]
    for size, base in list(ops.configs.items()):
        kept = base
        for config in variants(base, size[1]):
            ops.configs[size] = config
            time = attempt(str(size), config)
            if time < best:
                best, kept = time, config
        ops.configs[size] = kept
    print(f"{shape.name} best {seconds() * 1e6:.1f} us: {plan} {ops.configs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=[shape.name for shape in SHAPES])
    args = parser.parse_args()
    for shape in SHAPES:
        if shape.name in args.shapes:
            tune(shape)


if __name__ == "__main__":
    main()

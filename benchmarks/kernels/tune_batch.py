"""Launch shapes for the layers of 2 to 256 tokens, beside cuBLAS.

    PYTHONPATH=src python3 benchmarks/kernels/tune_batch.py [0.6b,8b] [--rows 8,32,256] [--best 3]

Each product runs once over every layer's weights in one graph, so that neighbours overlap as they
do in a model. Variants are compiled by several processes first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from shapes import SHAPES, ModelShape
from timing import copies, graph_time, relative_error
from torch import Tensor
from torch.nn import functional as F

from pagemill.ops.reference import ReferenceOps
from pagemill.ops.triton.batch_linear import (
    BatchConfig,
    batch_config,
    batch_linear_add,
    begin_stream,
    norm_batch_linear,
)
from pagemill.ops.triton.launch import cdiv, next_power_of_2

EPS = 1e-6
BF16 = {"device": "cuda", "dtype": torch.bfloat16}
ROWS = "8,16,32,64,128,256"
SMS = 132
REFERENCE = ReferenceOps()


def layers(shape: ModelShape) -> list[tuple[str, int, int, str]]:
    """(name, out, in, kind): with kind "gate" there are twice as many weights."""
    return [
        ("qkv", shape.qkv_size, shape.hidden, "norm"),
        ("o", shape.hidden, shape.heads.q_size, "add"),
        ("gate_up", shape.intermediate, shape.hidden, "gate"),
        ("down", shape.hidden, shape.intermediate, "add"),
    ]


def variants(tokens: int, out: int, inner: int, gated: bool) -> list[BatchConfig]:
    """The default first."""
    bucket = max(16, next_power_of_2(tokens))
    found = [batch_config(tokens, out, inner, SMS, gated)]
    blocks_m = [bucket] if bucket <= 64 else [64, 128]
    for block_m, block_n, deep in product(blocks_m, (16, 32, 64, 128), (False, True)):
        if (block_m >= 64 and block_n < 32) or (block_m <= 32 and block_n > 64):
            continue
        block_k = (256 if block_m == 16 else 128) if deep else (128 if block_m == 16 else 64)
        stages = 3 if (block_m + block_n * (1 + gated)) * block_k >= 16384 * 2 else 4
        warps = 8 if block_m * block_n * (1 + gated) >= 128 * 128 else 4
        programs = cdiv(out, block_n) * cdiv(tokens, block_m)
        for splits in (1, 2, 4, 8):
            crowd = programs * splits / SMS
            useful = 0.7 <= crowd <= 2.2 or (splits == 1 and crowd > 2.2)
            smem = (block_m + block_n * (1 + gated)) * block_k * 2 * stages
            if useful and inner >= splits * max(256, block_k) and smem <= 220_000:
                found.append(BatchConfig(block_m, block_n, block_k, splits, warps, stages))
    return list(dict.fromkeys(found))


def call(
    kind: str, x: Tensor, norm: Tensor, weight: Tensor, values: Tensor, counters: Tensor,
    config: BatchConfig,
) -> Tensor:  # fmt: skip
    if kind == "add":
        stream = begin_stream(values, norm)
        batch_linear_add(x, weight, None, stream, norm, counters, config)
        return stream.values
    activation = "silu" if kind == "gate" else None
    return norm_batch_linear(begin_stream(x, norm), EPS, weight, None, activation, counters, config)


def expected(kind: str, x: Tensor, norm: Tensor, weight: Tensor, values: Tensor) -> Tensor:
    if kind == "add":
        return values.float() + F.linear(x.float(), weight.float())
    y = F.linear(REFERENCE.rms_norm(x.float(), norm, EPS), weight.float())
    return REFERENCE.silu_mul(y) if kind == "gate" else y


def chain(
    kind: str, x: Tensor, norm: Tensor, weights: list[Tensor], values: Tensor, counters: Tensor,
    config: BatchConfig,
) -> list[Callable[[], object]]:  # fmt: skip
    """One call for each layer's weights."""
    if kind == "add":
        stream = begin_stream(values.clone(), norm)
        return [
            partial(batch_linear_add, x, weight, None, stream, norm, counters, config)
            for weight in weights
        ]
    stream, activation = begin_stream(x, norm), "silu" if kind == "gate" else None
    return [
        partial(norm_batch_linear, stream, EPS, weight, None, activation, counters, config)
        for weight in weights
    ]


def cases(shapes: list[str], rows: list[int]) -> Iterator[tuple[ModelShape, int, tuple]]:
    for shape in SHAPES:
        if shape.name in shapes:
            for tokens, layer in product(rows, layers(shape)):
                yield shape, tokens, layer


def measure(shape: ModelShape, tokens: int, layer: tuple[str, int, int, str], best: int) -> None:
    name, out, inner, kind = layer
    num_weights = out * (2 if kind == "gate" else 1)
    weights = [
        torch.randn(num_weights, inner, **BF16) / inner**0.5
        for _ in range(copies(num_weights * inner * 2, least=4, most=shape.layers))
    ]
    x, values = torch.randn(tokens, inner, **BF16), torch.randn(tokens, out, **BF16)
    norm = torch.rand(out if kind == "add" else inner, device="cuda") + 0.5
    counters = torch.zeros(65_536, dtype=torch.int32, device="cuda")
    target = expected(kind, x, norm, weights[0], values)
    cublas = graph_time([partial(F.linear, x, weight) for weight in weights]) * 1e6
    found = []
    for number, config in enumerate(variants(tokens, out, inner, kind == "gate")):
        try:
            y = call(kind, x, norm, weights[0], values.clone(), counters, config)
            error = relative_error(y, target)
            calls = chain(kind, x, norm, weights, values, counters, config)
            found.append((graph_time(calls) * 1e6, error, number == 0, config))
        except Exception as problem:  # noqa: BLE001 - a shape that does not fit the device
            print("#", config, str(problem)[:80])
    found.sort(key=lambda entry: entry[0])
    gb = num_weights * inner * 2 / 1e9
    print(f"{shape.name} m={tokens} {name}: cuBLAS {cublas:.1f} us", flush=True)
    for place, (us, error, default, config) in enumerate(found):
        if place < best or default:
            shape_text = (
                f"m{config.block_m} n{config.block_n} k{config.block_k} s{config.splits} "
                f"w{config.num_warps} st{config.num_stages}"
            )
            print(
                f"   {us:7.1f} us {gb / us * 1e3:5.2f} TB/s error {error:.1e} {shape_text}"
                + (" *" if default else "")
            )


def compile_share(shapes: list[str], rows: list[int], share: int, of: int) -> None:
    """Run every `of`-th variant once, for its kernel's place on disk."""
    counters = torch.zeros(65_536, dtype=torch.int32, device="cuda")
    number = 0
    for _, tokens, (_, out, inner, kind) in cases(shapes, rows):
        for config in variants(tokens, out, inner, kind == "gate"):
            number += 1
            if number % of != share:
                continue
            weight = torch.zeros(out * (2 if kind == "gate" else 1), inner, **BF16)
            x, values = torch.zeros(tokens, inner, **BF16), torch.zeros(tokens, out, **BF16)
            norm = torch.ones(out if kind == "add" else inner, device="cuda")
            try:
                call(kind, x, norm, weight, values, counters, config)
            except Exception:  # noqa: BLE001 - reported when it is measured
                continue
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="?", default="0.6b,8b")
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--best", type=int, default=3)
    parser.add_argument("--share", help="internal: compile only")
    args = parser.parse_args()
    shapes, rows = args.shapes.split(","), [int(n) for n in args.rows.split(",")]
    if args.share:
        share, of = (int(n) for n in args.share.split("/"))
        compile_share(shapes, rows, share, of)
        return
    of = max(1, (os.cpu_count() or 1) - 1)
    workers = [
        subprocess.Popen([sys.executable, *sys.argv, "--share", f"{share}/{of}"])
        for share in range(of)
    ]
    for worker in workers:
        worker.wait()
    for case in cases(shapes, rows):
        measure(*case, args.best)


if __name__ == "__main__":
    main()

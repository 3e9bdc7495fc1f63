"""Attention on the CPU alone: milliseconds of all layers beside what memory and products allow.

The caches of all layers are read in turn, as a step reads them. Memory's limit is a sum over a
large tensor; arithmetic's is given, in 10^9 multiply-adds a second of all threads together.
python benchmarks/kernels/cpu_attention.py --peak 100 --cache int8 --shapes 1x1,32x1,1x256
"""

from __future__ import annotations

import argparse
import os
from functools import partial

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import torch
from cpu_steps import BLOCK, make_batch, milliseconds
from torch import Tensor

from pagemill.attention.base import AttentionSpec, ForwardBatch, LayerCache
from pagemill.attention.cpu import CpuAttention
from pagemill.ops.int8_cache import round_pages, row_size


def read_rate() -> float:
    """GB/s at which all threads read memory in order."""
    large = torch.ones(128 * 1024 * 1024)
    return large.numel() * 4 / 1e6 / milliseconds(large.sum, 0.5)[0]


def make_caches(kind: torch.dtype, layers: int, shape: tuple[int, ...]) -> list[LayerCache]:
    """Pages of random numbers of each layer; `shape` is that of pages without scales."""
    first = torch.randn(shape)
    pages = round_pages(first) if kind == torch.int8 else first.to(kind)
    return [LayerCache(pages.clone(), pages.clone()) for _ in range(layers)]


def all_layers(
    backend: CpuAttention, specs: list[AttentionSpec], q: Tensor, batch: ForwardBatch
) -> None:
    for spec in specs:
        backend.run(spec, q, batch)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--context", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--peak", type=float, required=True)
    parser.add_argument("--shapes", default="1x1,8x1,32x1,1x128,1x256,1x512,2x256")
    parser.add_argument("--cache", default="float16", choices=("float32", "float16", "int8"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rate, kind = read_rate(), getattr(torch, args.cache)
    print(f"memory {rate:.1f} GB/s, arithmetic {args.peak:.0f} GMAC/s, cache {args.cache}")
    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes.split(",")]
    most = max(rows * -(-(args.context + queries) // BLOCK) for rows, queries in shapes)
    caches = make_caches(kind, args.layers, (most + 1, args.kv_heads, BLOCK, args.head_dim))
    specs = [
        AttentionSpec(layer, args.heads, args.kv_heads, args.head_dim, args.head_dim**-0.5)
        for layer in range(args.layers)
    ]
    row_bytes = row_size(args.head_dim, kind) * kind.itemsize
    for rows, queries in shapes:
        past = args.context if queries == 1 else 0
        batch = make_batch(caches, rows, queries, past)
        q = torch.randn(rows * queries, args.heads, args.head_dim)
        best, median = milliseconds(
            partial(all_layers, CpuAttention(), specs, q, batch), args.seconds
        )
        pairs = rows * sum(past + i + 1 for i in range(queries))
        products = 2 * pairs * args.heads * args.head_dim * args.layers / 1e6
        cached = 2 * rows * (past + queries) * args.kv_heads * row_bytes * args.layers / 1e6
        limit = max(products / args.peak, cached / rate)
        print(
            f"{rows:3} rows x {queries:3} tokens after {past}: "
            f"{best:.2f} (median {median:.2f}) ms, {products / best:.0f} GMAC/s, "
            f"{cached / best:.1f} GB/s; limit {limit:.2f} ms, "
            f"{100 * limit / best:.0f} %"
        )


if __name__ == "__main__":
    main()

"""Bfloat16 products on the CPU: time, this machine's limit, share of it, and oneDNN's time.

As in cpu_products.py, passes go over as many distinct matrices as the model has layers. oneDNN gets
its weights packed beforehand as well, and activations that are rounded already. Sums of the layers'
products come last.
python benchmarks/kernels/cpu_half.py --rows 1,8,32,128,512 --threads 2
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.cpu_products import SHAPES, Limits, Shape, measure_limits
from pagemill.ops.cpu import _native
from pagemill.ops.cpu.matrix import MatrixProducts, PackedMatrix, empty_matrix, store_rows
from pagemill.ops.cpu.memory import WeightMemory


def pack(weight: Tensor, memory: WeightMemory) -> PackedMatrix:
    matrix = empty_matrix(*weight.shape, None, memory)
    store_rows(matrix, weight, 0)
    return matrix


def least_seconds(passes: tuple[Callable[[], None], ...], budget: float) -> list[float]:
    """The least time of each; they take turns, so that all see the same machine."""
    best, spent = [1e9] * len(passes), 0.0
    while spent < budget:
        for i, run in enumerate(passes):
            began = time.perf_counter()
            run()
            took = time.perf_counter() - began
            best[i], spent = min(best[i], took), spent + took
    return best


def compare(shape: Shape, weights: list[Tensor], rows: int, budget: float) -> list[float]:
    """Seconds for a product by the own kernels and by oneDNN."""
    memory, products, onednn = WeightMemory(), MatrixProducts(), torch.ops.mkldnn
    own = [pack(weight, memory) for weight in weights]
    theirs = [onednn._reorder_linear_weight(weight, rows) for weight in weights]
    x = torch.randn(rows, shape.inputs).bfloat16()

    def by_own() -> None:
        for matrix in own:
            products.linear(x, matrix)

    def by_onednn() -> None:
        for weight in theirs:
            onednn._linear_pointwise(x, weight, None, "none", [], "")

    by_own()
    by_onednn()
    return [seconds / len(own) for seconds in least_seconds((by_own, by_onednn), budget)]


def report(shape: Shape, rows: int, took: list[float], limits: Limits) -> None:
    macs = rows * shape.outs * shape.inputs
    limit = limits.seconds(macs, 2 * shape.outs * shape.inputs, shape.copies)
    print(
        f"{shape.name:10} {rows:4} {1e3 * took[0]:8.4f} {1e3 * limit:8.4f} {limit / took[0]:6.1%} "
        f"{macs / took[0] / 1e9:7.1f} {1e3 * took[1]:9.4f}"
    )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1,8,32,128,512")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.6, help="for each line")
    args = parser.parse_args()
    limits = measure_limits(args.threads, "bf16_gmac")
    torch.set_num_threads(args.threads)
    print(f"isa {_native.isa()}, torch {torch.__version__}")
    print(f"product    rows {'ms':>8} {'limit':>8} {'share':>6} {'GMAC/s':>7} {'oneDNN ms':>9}")
    totals: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for shape in SHAPES:
        weights = [torch.randn(shape.outs, shape.inputs).bfloat16() for _ in range(shape.copies)]
        for rows in map(int, args.rows.split(",")):
            if shape.name == "vocabulary" and rows > 32:
                continue  # only the last token of a prompt gets there
            took = compare(shape, weights, rows, args.seconds)
            report(shape, rows, took, limits)
            for i, seconds in enumerate(took):
                totals[rows][i] += shape.copies * seconds if shape.copies > 1 else 0.0
    for rows, (own, onednn) in totals.items():
        print(f"{rows} rows, the layers' products: {1e3 * own:.2f} ms, oneDNN {1e3 * onednn:.2f}")


if __name__ == "__main__":
    main()

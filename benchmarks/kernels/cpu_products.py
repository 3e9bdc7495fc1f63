"""Products with matrices in 4 and 8 bits on the CPU: time, this machine's limit, share of it.

Each time is of one product of SmolLM2-135M, out of a pass over so many copies of its matrix that
the weights come from memory, as in a step. The limit is the larger of the weights' bytes by the
speed of memory and the products by the speed of the byte instruction, both measured by
cpu_limits.cpp, which needs a C++ compiler.
python benchmarks/kernels/cpu_products.py --rows 1,8,32,128,512 --threads 2
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import torch
from torch import Tensor

from pagemill.checkpoint.groups import quantize_groups
from pagemill.ops.cpu import _native
from pagemill.ops.cpu.matrix import PackedMatrix, pack_matrix
from pagemill.ops.cpu.memory import WeightMemory
from pagemill.ops.cpu.types import type_code

CACHE_BYTES = 24 << 20  # more than that is read from memory, not from the last-level cache
BYTES = 96 << 20  # of all copies of a matrix


@dataclass(frozen=True)
class Shape:
    name: str
    outs: int
    inputs: int
    copies: int


SHAPES = (
    Shape("qkv", 960, 576, 30),
    Shape("o", 576, 576, 30),
    Shape("gate_up", 3072, 576, 30),
    Shape("down", 576, 1536, 30),
    Shape("vocabulary", 49152, 576, 1),
)
FORMS = {"int4 offset": (4, True), "int4": (4, False), "int8": (8, False)}


@dataclass(frozen=True)
class Limits:
    macs: float  # products of bytes, a second
    memory: float  # bytes a second
    cache: float  # out of the last-level cache

    def seconds(self, macs: int, matrix_bytes: int, copies: int) -> float:
        resident = matrix_bytes * copies < CACHE_BYTES
        return max(macs / self.macs, matrix_bytes / (self.cache if resident else self.memory))


def byte_product() -> str:
    """The instruction that the kernels use, as cpu_limits.cpp calls it."""
    return "vnni_gmac" if _native.isa().startswith("avx512") else "maddubs_gmac"


def measure_limits(threads: int, product: str) -> Limits:
    """Compiles and runs cpu_limits.cpp. Raises CalledProcessError where that fails."""
    source = Path(__file__).with_name("cpu_limits.cpp")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "cpu_limits"
        flags = ["-std=c++17", "-O3", "-march=native", "-fopenmp"]
        subprocess.run(["c++", *flags, str(source), "-o", str(program)], check=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_PROC_BIND": "true"}
        output = subprocess.run([program], env=environment, check=True, capture_output=True)
    print(output.stdout.decode(), end="")
    values = dict(line.split() for line in output.stdout.decode().splitlines())
    macs = float(values[product])
    read = {size: 1e9 * float(values[f"read_{size}mb_gbs"]) for size in (16, 256)}
    return Limits(1e9 * macs, read[256], read[16])


def make_matrices(shape: Shape, form: str, coarse: bool) -> list[PackedMatrix]:
    """Copies of one matrix, each in its own place."""
    bits, offsets = FORMS[form]
    weight = quantize_groups(torch.randn(shape.outs, shape.inputs), bits)
    # Rounding to 4 bits yields offsets; without them the same codes stand for other weights.
    offset = weight.offset if offsets else None
    memory = WeightMemory()

    def copy() -> PackedMatrix:
        return pack_matrix(
            weight.codes,
            weight.scale,
            offset,
            None,
            bits=bits,
            in_features=shape.inputs,
            memory=memory,
            coarse=coarse,
        )

    first = copy()
    return [first, *(copy() for _ in range(BYTES // first.packed.numel()))]


def seconds_each(x: Tensor, matrices: list[PackedMatrix], budget: float) -> float:
    """The least time of a product in a pass over all matrices."""
    workspace = _native.Workspace()
    # One output: pages of a new one would cost more than small products do.
    out = torch.empty(len(x), matrices[0].shape[0])
    best, spent = 1e9, 0.0
    for attempt in range(50):
        began = time.perf_counter()
        for matrix in matrices:
            _native.group_linear(
                type_code(x), x.data_ptr(), out.data_ptr(), len(x), matrix.native, workspace
            )
        took = time.perf_counter() - began
        spent += took
        if attempt:
            best = min(best, took / len(matrices))
        if attempt > 1 and spent > budget:
            break
    return best


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1,8,32,128,512")
    parser.add_argument("--forms", default="int4 offset,int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each line")
    parser.add_argument("--fine", action="store_true", help="never in coarser codes")
    args = parser.parse_args()
    limits = measure_limits(args.threads, byte_product())
    torch.set_num_threads(args.threads)
    print(f"isa {_native.isa()}")
    print(
        f"{'form':12} {'product':10} {'rows':>4} {'ms':>8} {'limit':>8} {'share':>6} {'GMAC/s':>7}"
    )
    totals: dict[tuple[str, int], float] = {}
    for form in args.forms.split(","):
        for shape in SHAPES:
            matrices = make_matrices(shape, form, not args.fine)
            for rows in map(int, args.rows.split(",")):
                if shape.name == "vocabulary" and rows > 32:
                    continue  # only the last token of a prompt gets there
                took = seconds_each(torch.randn(rows, shape.inputs), matrices, args.seconds)
                macs = rows * shape.outs * shape.inputs
                limit = limits.seconds(macs, matrices[0].packed.numel(), len(matrices))
                print(
                    f"{form:12} {shape.name:10} {rows:4} {1e3 * took:8.4f} {1e3 * limit:8.4f} "
                    f"{limit / took:6.1%} {macs / took / 1e9:7.1f}"
                )
                if shape.copies > 1:
                    key = form, rows
                    totals[key] = totals.get(key, 0.0) + shape.copies * took
    for (form, rows), total in totals.items():
        print(f"{form}, {rows} rows: the layers' products {1e3 * total:.2f} ms")


if __name__ == "__main__":
    main()

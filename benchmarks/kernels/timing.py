"""Time kernels in CUDA graphs, over enough copies of their inputs to defeat the cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

CACHE_BYTES = 256 << 20  # several times the L2 cache
REPEATS = 7


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device can do, measured: bytes read + written, and bf16 products, per second."""

    bandwidth: float
    flops: float


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table. `limit_us` is the time that the bytes or the products need."""

    case: str
    variant: str
    us: float
    limit_us: float
    error: float

    @property
    def share(self) -> float:
        return self.limit_us / self.us

    def line(self) -> str:
        return (
            f"{self.case:34.34s} {self.variant:34.34s} {self.us:9.2f} {self.limit_us:9.2f} "
            f"{100 * self.share:6.1f}% {self.error:9.1e}"
        )

    def record(self) -> dict[str, object]:
        return asdict(self) | {"share": self.share}


def header() -> str:
    return f"{'case':34s} {'variant':34s} {'us':>9s} {'limit us':>9s} {'share':>7s} {'error':>9s}"


def graph_time(calls: Sequence[Callable[[], object]]) -> float:
    """Seconds of one call when all of them run back to back in one captured graph."""
    for call in calls:
        call()  # compiles, and allocates what outlives a call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return replay_time(graph) / len(calls)


def replay_time(graph: torch.cuda.CUDAGraph) -> float:
    """Median seconds of a graph's replay."""
    graph.replay()
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def copies(num_bytes: int, least: int = 2, most: int = 64) -> int:
    """How many copies of inputs of this size to rotate among."""
    return max(least, min(most, CACHE_BYTES // max(num_bytes, 1)))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """In the Frobenius norm; infinite for anything that is not finite."""
    difference = (actual.double() - expected.double()).norm() / expected.double().norm()
    value = float(difference)
    return value if value == value else float("inf")


def measure_limits() -> Limits:
    """Copy a gigabyte; multiply two matrices of 8192."""
    source = torch.empty(1 << 29, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)
    seconds = graph_time([lambda: target.copy_(source)] * 4)
    bandwidth = 2 * source.numel() * source.element_size() / seconds
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * 8192**3 / graph_time([lambda: a @ b] * 4)
    return Limits(bandwidth, flops)

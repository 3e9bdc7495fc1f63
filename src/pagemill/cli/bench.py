"""`pagemill bench serve | throughput | latency`."""

from __future__ import annotations

import argparse

from pagemill.cli.bench_parser import llm_options


def bench(parsed: argparse.Namespace) -> int:
    """Run a benchmark; returns the exit code. Raises PageMillError."""
    if parsed.kind == "serve":
        from pagemill.bench.serve import bench_serve

        return bench_serve(parsed)
    from pagemill.bench.offline import bench_latency, bench_throughput

    parsed.llm_options = llm_options(parsed)
    return bench_throughput(parsed) if parsed.kind == "throughput" else bench_latency(parsed)

"""Throughput and latency over HTTP: 1, 32 and 256 callers, and 1000 requests at once.

    python benchmarks/serve.py --model FOLDER [--json results.jsonl] [-- --load-format dummy ...]
    python benchmarks/serve.py --url http://127.0.0.1:8000 --model FOLDER

Starts `pagemill serve FOLDER` with the flags behind `--`, waits until it is ready, runs the rows
and stops it; with `--url` any running server with OpenAI's API is measured by the same client.
FOLDER has the tokenizer (`tokenizer.json`) that makes the prompts, as `vllm bench serve` does;
without one they are token ids. Prompts of 512 tokens, outputs of 256, greedy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pagemill.bench.dataset import RandomShape, load_tokenizer, random_samples
from pagemill.bench.http_stream import Target
from pagemill.bench.load import Load, run
from pagemill.bench.records import Call, Record
from pagemill.bench.serve import first_model, wait_ready
from pagemill.bench.summary import print_errors, summarise
from pagemill.version import __version__

START_TIMEOUT = 600.0
STOP_TIMEOUT = 60.0


@dataclass(frozen=True)
class Row:
    """A row of the table: requests, and how many are open at once (0: all)."""

    name: str
    requests: int
    callers: int


ROWS = (
    Row("1 caller", 8, 1),
    Row("32 callers", 128, 32),
    Row("256 callers", 768, 256),
    Row("1000 at once", 1000, 0),
)


@contextmanager
def server(model: str, flags: list[str], log: Path | None) -> Iterator[Target]:
    """`pagemill serve` on a free port, ready; stopped at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "pagemill", "serve", model, "--port", str(port)]
    command += ["--log-level", "warning", *flags]
    out = log.open("wb") if log else None
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT if out else None)
    target = Target("127.0.0.1", port, "/v1/completions")
    try:
        _wait(target, process)
        print(f"ready after {time.perf_counter() - begin:.1f} s", flush=True)
        yield target
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if out:
            out.close()


def _wait(target: Target, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            wait_ready(target, 1.0)
            return
        except Exception:
            if process.poll() is not None or time.monotonic() > deadline:
                raise


def make_calls(
    row: Row, args: argparse.Namespace, model: str, rng: np.random.Generator
) -> tuple[Call, ...]:
    """New prompts for a row, so that no cache has them."""
    shape = RandomShape(args.input_len, args.output_len)
    tokenizer = load_tokenizer(args.tokenizer or args.model)
    calls = []
    for sample in random_samples(shape, row.requests, rng, tokenizer):
        body = {
            "model": model,
            "prompt": sample.prompt,
            "max_tokens": sample.output_len,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        calls.append(Call(json.dumps(body).encode(), sample.input_len, sample.output_len))
    return tuple(calls)


def measure(target: Target, row: Row, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One run of a row: its figures, with the machine's name and load."""
    rng = np.random.default_rng([seed, row.requests])
    calls = make_calls(row, args, args.served_model_name or first_model(target), rng)
    load = os.getloadavg()[0]
    records = run(Load(target, calls, row.callers), args.processes)
    print_errors(records)
    figures = summarise(records, percentiles=(99,), goodput={})
    short = sum(record.output_len != args.output_len for record in records)
    return {
        "row": row.name,
        "server": args.name,
        "pagemill": __version__,
        "model": args.model,
        "input_len": args.input_len,
        "output_len": args.output_len,
        "short_outputs": short,
        "events": _num_events(records),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "machine": platform.machine(),
        **{name: value for name, value in figures.items() if value is not None},
    }


def _num_events(records: list[Record]) -> int:
    return sum(len(record.times) for record in records)


def show(result: dict[str, Any]) -> None:
    """A row of the table."""
    print(
        f"{result['row']:14s} {result['completed']:5d} ok {result['failed']:3d} failed "
        f"{result['output_throughput']:9.1f} tok/s  TTFT {result['median_ttft_ms']:8.1f} ms "
        f"(p99 {result['p99_ttft_ms']:8.1f})  TPOT {result['median_tpot_ms']:7.2f} ms  "
        f"ITL p99 {result['p99_itl_ms']:7.2f} ms  {result['duration']:7.2f} s",
        flush=True,
    )


def run_rows(target: Target, args: argparse.Namespace) -> bool:
    """Every row, `--repeats` times; whether nothing failed."""
    fine = True
    for number, row in enumerate(ROWS):
        if args.rows and number not in args.rows:
            continue
        for repeat in range(args.repeats):
            result = measure(target, row, args, args.seed + repeat)
            show(result)
            fine = fine and not result["failed"]
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    return fine


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder to serve, or of the tokenizer")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--served-model-name", help="default: the server's first")
    parser.add_argument("--tokenizer", help="folder; default: the model's")
    parser.add_argument("--name", default="pagemill", help="of the server, for the results")
    parser.add_argument("--load-format", help="passed on to pagemill serve")
    parser.add_argument("--rows", type=int, nargs="*", help="of the table, from 0; default: all")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--processes", type=int, default=0, help="of the client")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--log", type=Path, help="write the server's output here")
    parser.add_argument("--json", type=Path, help="append a line for each run to this file")
    mark = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    return parser.parse_args(sys.argv[1:mark]), sys.argv[mark + 1 :]


def main() -> int:
    args, flags = parse()
    if args.load_format:
        flags += ["--load-format", args.load_format]
    if args.url:
        host, _, port = args.url.removeprefix("http://").rstrip("/").partition(":")
        target = Target(host, int(port or 80), "/v1/completions")
        wait_ready(target, START_TIMEOUT)
        return int(not run_rows(target, args))
    with server(args.model, flags, args.log) as target:
        return int(not run_rows(target, args))


if __name__ == "__main__":
    sys.exit(main())

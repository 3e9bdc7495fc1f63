"""What the HTTP side costs: processor time of the frontend for each streamed token.

    python benchmarks/http_path.py [--json benchmarks/results/http_path.jsonl]

A real server over an engine process that has no model (`fake_engine.py`) and answers all streams
with a token each step. The processor time counts, not the clock, so that a shared machine gives
usable numbers; streams are read by a light client in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import psutil

from pagemill.bench.http_stream import Target
from pagemill.bench.load import Load, run
from pagemill.bench.records import Call

FAKE = Path(__file__).with_name("fake_engine.py")
START_TIMEOUT = 60.0


@dataclass(frozen=True)
class Row:
    """One workload: callers, requests, tokens of each, and the engine's step."""

    name: str
    callers: int
    requests: int
    tokens: int
    step_ms: float


ROWS = (
    Row("1 caller", 1, 4, 256, 1.0),
    Row("32 callers", 32, 64, 256, 4.0),
    Row("256 callers", 256, 256, 256, 20.0),
    Row("1000 at once", 1000, 1000, 64, 80.0),
    Row("2000 open", 2000, 2000, 32, 500.0),
)


def serve_fake(parsed: argparse.Namespace) -> None:
    """The server process: `pagemill serve` with the fake engine."""
    from pagemill.cli import serve as command
    from pagemill.config.args import ServeArgs

    args = ServeArgs(
        port=parsed.port,
        log_level="warning",
        device="cpu",
        max_num_queued_reqs=8192,
        max_model_len=4096,
        model=parsed.model,
        frontend_workers=str(parsed.workers),
    )
    engine = (sys.executable, str(FAKE), "--step-ms", str(parsed.step_ms))
    command.serve(args, engine_command=engine)


@contextmanager
def server(script: str, step_ms: float, *options: str) -> Iterator[tuple[int, psutil.Process]]:
    """The port and process of a running `script --serve`."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    command = [sys.executable, script, "--serve", "--port", str(port), "--step-ms", str(step_ms)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    try:
        wait_ready(port, process)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the server did not start")


def frontends(process: psutil.Process) -> list[psutil.Process]:
    """The processes that answer HTTP: all but the engine."""
    own = [process, *process.children(recursive=True)]
    return [p for p in own if "fake_engine.py" not in " ".join(p.cmdline())]


def cpu_seconds(processes: list[psutil.Process]) -> list[float]:
    times = [process.cpu_times() for process in processes]
    return [t.user + t.system for t in times]


def measure(row: Row, workers: int, input_len: int, model: str | None) -> dict[str, object]:
    """Run a row on a server of its own."""
    rng = np.random.default_rng(0)
    options = ["--workers", str(workers), *(["--model", model] if model else [])]
    with server(__file__, row.step_ms, *options) as (port, process):
        target = Target("127.0.0.1", port, "/v1/completions")
        calls = tuple(_call(rng, input_len, row.tokens) for _ in range(row.requests))
        run(Load(target, calls[:8], 4), 1)  # warm
        serving = frontends(process)
        begin_cpu, begin = cpu_seconds(serving), time.perf_counter()
        records = run(Load(target, calls, row.callers), 1)
        seconds = time.perf_counter() - begin
        memory = max(own.memory_info().rss for own in serving)
        spent = [b - a for a, b in zip(begin_cpu, cpu_seconds(serving), strict=True)]
    errors = [record.error for record in records if record.error]
    if errors:
        raise RuntimeError(f"{len(errors)} requests failed: {errors[0]}")
    tokens = sum(record.output_len for record in records)
    return {
        "row": row.name,
        "workers": workers,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tok_s": round(tokens / seconds),
        "frontend_us_per_token": round(1e6 * sum(spent) / tokens, 1),
        "busiest_frontend_s": round(max(spent), 2),
        "ttft_ms_median": round(1000 * float(np.median([r.ttft for r in records])), 1),
        "frontend_mb": round(memory / 2**20),
        "chunks": sum(len(record.times) for record in records),
    }


def _call(rng: np.random.Generator, input_len: int, tokens: int) -> Call:
    prompt = rng.integers(1000, 40000, input_len).tolist()
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    return Call(json.dumps(body).encode(), input_len, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--step-ms", type=float, help="instead of the row's own")
    parser.add_argument("--model", help="for its tokenizer; default: the demo model")
    parser.add_argument("--rows", type=int, nargs="*", help="of the table, from 0")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--json", type=Path, help="append a line for each row to this file")
    args = parser.parse_args()
    if args.serve:
        serve_fake(args)
        return
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    for number, row in enumerate(ROWS):
        if args.rows and number not in args.rows:
            continue
        result = measure(row, args.workers, args.input_len, args.model)
        print(result, flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(machine | asdict(row) | result) + "\n")


if __name__ == "__main__":
    main()

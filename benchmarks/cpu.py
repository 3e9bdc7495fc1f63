"""Servers beside each other on the same two cores: the same prompts, one after the other, one run.

    python benchmarks/cpu.py --tokenizer FOLDER --rounds 3 --json out.json --plot out.svg \\
        --engine 'PageMill=pagemill serve --port {port} --max-model-len 2048' \\
        --engine 'llama.cpp Q4_0=python benchmarks/peers/llamacpp_server.py q4_0.gguf --port {port}'

FOLDER has the tokenizer.json that cuts the prompts. Every round starts each engine anew, so a busy
neighbour hits all of them. Greedy, end tokens ignored, prompts are token ids out of the Python
manual, new in every round. Reported beside the figures: the part of a core that other processes
used, and memory (proportional set size of the server's processes).
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import random
import shlex
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tokenizers import Tokenizer

from pagemill.bench.http_stream import Target
from pagemill.bench.load import Load, run
from pagemill.bench.records import Call
from pagemill.bench.serve import first_model, wait_ready
from pagemill.bench.summary import summarise

START_TIMEOUT = 240.0
STOP_TIMEOUT = 20.0


@dataclass(frozen=True)
class Workload:
    """Callers, requests, and tokens: a prefix that all share, the prompt's own, the output."""

    callers: int
    requests: int
    shared: int
    own: int
    output: int


WORKLOADS = {
    "a": Workload(1, 4, 0, 128, 128),
    "b": Workload(8, 64, 0, 256, 128),
    "c": Workload(32, 128, 0, 256, 128),
    "d": Workload(8, 32, 1024, 32, 64),
    "bs": Workload(8, 16, 0, 256, 128),  # b, c and d, shorter
    "cs": Workload(32, 32, 0, 256, 128),
    "ds": Workload(8, 8, 1024, 32, 64),
}
WARM_UP = Workload(2, 4, 0, 64, 16)


@dataclass(frozen=True)
class Server:
    target: Target
    process: subprocess.Popen[bytes]
    started_in: float


def manual_tokens(folder: Path) -> list[int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def make_calls(work: Workload, tokens: list[int], model: str, seed: str) -> tuple[Call, ...]:
    rng = random.Random(seed)

    def window(count: int) -> list[int]:
        start = rng.randrange(len(tokens) - count)
        return tokens[start : start + count]

    shared = window(work.shared)
    prompts = [shared + window(work.own) for _ in range(work.requests)]
    bodies = [
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": work.output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for prompt in prompts
    ]
    size = work.shared + work.own
    return tuple(Call(json.dumps(body).encode(), size, work.output) for body in bodies)


@contextmanager
def serving(command: str, log: Path) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    began = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            shlex.split(command.format(port=port)),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    target = Target("127.0.0.1", port, "/v1/completions", ("Connection: close",))
    try:
        wait_ready(target, START_TIMEOUT)
        yield Server(target, process, time.perf_counter() - began)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def processes(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """Used by the server's processes and by this one."""
    times = [p.cpu_times() for p in (*processes(pid), psutil.Process())]
    return sum(t.user + t.system for t in times)


def busy_seconds() -> float:
    """Used by the whole machine."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def memory_mb(pid: int) -> float:
    return sum(p.memory_full_info().pss for p in processes(pid)) / 2**20


def measure(server: Server, work: Workload, calls: tuple[Call, ...]) -> dict[str, Any]:
    pid = server.process.pid
    busy, own = busy_seconds(), cpu_seconds(pid)
    records = run(Load(server.target, calls, max_concurrency=work.callers))
    busy, own = busy_seconds() - busy, cpu_seconds(pid) - own
    found = summarise(records, percentiles=[99], goodput={})
    return {
        "tok_s": found["output_throughput"],
        "ttft_ms": found["median_ttft_ms"],
        "tpot_ms": found["median_tpot_ms"],
        "failed": found["failed"],
        "foreign_cpu": max(0.0, busy - own) / found["duration"],
        "memory_mb": memory_mb(pid),
    }


def one_round(
    name: str, command: str, names: list[str], tokens: list[int], index: int
) -> list[dict[str, Any]]:
    """Start an engine, run the workloads, stop it."""
    rows = []
    with serving(command, Path(f"cpu-{name.replace(' ', '-')}.log")) as server:
        model = first_model(server.target)
        warm = make_calls(WARM_UP, tokens, model, f"warm/{index}")
        run(Load(server.target, warm, max_concurrency=WARM_UP.callers))
        for workload in names:
            work = WORKLOADS[workload]
            calls = make_calls(work, tokens, model, f"{workload}/{index}")
            row = {"engine": name, "workload": workload, "round": index}
            row |= measure(server, work, calls) | {"up_s": server.started_in}
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], engines: list[str], names: list[str]) -> str:
    """Medians over the rounds, as Markdown: tok/s and TTFT by workload, start and memory."""
    lines = ["| engine | " + " | ".join(names) + " | up in | memory | others' CPU |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for engine in engines:
        mine = [row for row in rows if row["engine"] == engine]
        cells = [_cell([row for row in mine if row["workload"] == name]) for name in names]
        up = statistics.median(row["up_s"] for row in mine)
        memory = max(row["memory_mb"] for row in mine)
        foreign = statistics.median(row["foreign_cpu"] for row in mine)
        ends = f"{up:.1f} s | {memory:.0f} MB | {foreign:.2f}"
        lines.append(f"| {engine} | {' | '.join(cells)} | {ends} |")
    return "\n".join(lines)


def _cell(rows: list[dict[str, Any]]) -> str:
    speeds = [row["tok_s"] for row in rows]
    ttft = statistics.median(row["ttft_ms"] for row in rows)
    failed = sum(row["failed"] for row in rows)
    spread = f" ({min(speeds):.0f}-{max(speeds):.0f})" if len(speeds) > 1 else ""
    return f"{statistics.median(speeds):.0f}{spread}, {ttft:.0f} ms" + f", {failed} failed" * (
        failed > 0
    )


def plot(rows: list[dict[str, Any]], engines: list[str], names: list[str]) -> str:
    """Bars of output tokens per second, as an SVG."""
    best = {n: max(r["tok_s"] for r in rows if r["workload"] == n) for n in names}
    parts, y = [], 20
    for name in names:
        parts.append(f'<text x="0" y="{y}" font-weight="bold">workload {name}</text>')
        for engine in engines:
            speeds = [r["tok_s"] for r in rows if (r["workload"], r["engine"]) == (name, engine)]
            speed = statistics.median(speeds)
            y += 18
            width = 340 * speed / best[name]
            fill = "#2a6f97" if engine.startswith("PageMill") else "#a9bcc8"
            parts.append(f'<text x="0" y="{y}">{engine}</text>')
            parts.append(
                f'<rect x="170" y="{y - 11}" width="{width:.0f}" height="14" fill="{fill}"/>'
            )
            parts.append(f'<text x="{176 + width:.0f}" y="{y}">{speed:.0f}</text>')
        y += 30
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="580" height="{y}" '
        f'font-family="sans-serif" font-size="12">\n{body}\n</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", action="append", required=True, metavar="NAME=COMMAND")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--workloads", default="a,b,c,d")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    engines = dict(engine.split("=", 1) for engine in args.engine)
    names, tokens = args.workloads.split(","), manual_tokens(args.tokenizer)
    rows: list[dict[str, Any]] = []
    for index in range(args.rounds):
        for name, command in engines.items():
            rows += one_round(name, command, names, tokens, index)
    print(table(rows, list(engines), names))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if args.plot:
        args.plot.write_text(plot(rows, list(engines), names))


if __name__ == "__main__":
    main()

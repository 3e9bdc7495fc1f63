"""Sends the calls of a benchmark: at their times, so many at once, from several processes."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from pagemill.bench.http_stream import ConnectionPool, Target
from pagemill.bench.records import Call, Record
from pagemill.config.open_files import allow_many

START_SECONDS = 0.3  # from when all processes are there until the first request
CALLS_PER_PROCESS = 128  # at once; one process can read this many fast streams
MAX_PROCESSES = 8


@dataclass(frozen=True, slots=True)
class Load:
    """The calls, and how many may be open (0: all that are due)."""

    target: Target
    calls: tuple[Call, ...]
    max_concurrency: int = 0
    keep_text: bool = False


def run(load: Load, processes: int = 0) -> list[Record]:
    """Send everything and wait for the answers; 0 processes: as many as the load needs."""
    at_once = min(load.max_concurrency or len(load.calls), len(load.calls))
    count = max(1, min(processes or _processes_for(at_once), at_once))
    if count == 1:
        return _run_now(load, time.perf_counter())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        list(pool.map(_warm, range(count)))
        begin = time.perf_counter() + START_SECONDS
        shares = [pool.submit(_run_now, share, begin) for share in _split(load, count)]
        return [record for share in shares for record in share.result()]


def _processes_for(at_once: int) -> int:
    cores = os.cpu_count() or 1
    return min(-(-at_once // CALLS_PER_PROCESS), MAX_PROCESSES, max(1, cores // 4))


def _split(load: Load, count: int) -> list[Load]:
    """The same load in parts that add up."""
    shares = []
    for i in range(count):
        allowed = load.max_concurrency
        if allowed:
            allowed = allowed // count + (i < allowed % count)
        shares.append(Load(load.target, load.calls[i::count], allowed, load.keep_text))
    return [share for share in shares if share.calls]


def _warm(_: int) -> None:
    """Lets a process start and import before the clock does."""
    time.sleep(0.1)


def _run_now(load: Load, begin: float) -> list[Record]:
    import uvloop

    allow_many()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_send_all(load, begin))
    finally:
        gc.enable()


async def _send_all(load: Load, begin: float) -> list[Record]:
    pool = ConnectionPool(load.target, keep_text=load.keep_text)
    room = asyncio.Semaphore(load.max_concurrency or len(load.calls))

    async def one(call: Call) -> Record:
        async with room:
            return await pool.ask(call)

    tasks = []
    for call in load.calls:
        wait = begin + call.start - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(call)))
    records = await asyncio.gather(*tasks)
    pool.close()
    return list(records)


def start_times(
    count: int, rate: float, burstiness: float, rng: np.random.Generator
) -> list[float]:
    """When each of `count` calls is due, in seconds, at `rate` a second (inf: all at once).

    Intervals follow a gamma distribution: `burstiness` 1 is a Poisson process, more is more even.
    """
    if rate == float("inf"):
        return [0.0] * count
    intervals = rng.gamma(burstiness, 1 / (rate * burstiness), count)
    return [float(second) for second in np.cumsum(intervals)]

"""Host time of one engine step, without a model: scheduling, batch, blocks, results, deltas.

    python benchmarks/engine_loop.py [--json benchmarks/results/engine_loop.json]

The executor answers at once, so the numbers are what the loop itself costs. Requests decode in a
steady state, at lengths spread over the block size, with prefix caching on; the first steps, which
compute the prompts, are not counted. What else a machine does can only add to the times, so each
number of rows is measured in several rounds, and the one with the lowest median counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagemill.config.engine import EngineConfig
from pagemill.engine.engine import Engine
from pagemill.engine.messages import AddRequest, EngineInfo
from pagemill.kvcache.hashing import hash_blocks
from pagemill.params import SamplingParams
from pagemill.scheduler.batch import Batch
from pagemill.scheduler.result import StepResult

ROW_COUNTS = (1, 64, 256, 1024)
PROMPT_LEN = 128
BLOCK_SIZE = 16
HASH_KEY = "00" * 32


class ReadyResult:
    """A result that needs no waiting."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> StepResult:
        return self._result


class InstantExecutor:
    """Samples the same tokens every time, one a row, and takes no time."""

    def __init__(self, info: EngineInfo) -> None:
        self.info = info
        rng = np.random.default_rng(0)
        self._token_ids = rng.integers(10, 50_000, (info.max_num_seqs, 1), np.int32)

    def forward(self, batch: Batch) -> None:
        pass

    def sample(self, batch: Batch, bitmask: NDArray[np.int32] | None = None) -> ReadyResult:
        token_ids = self._token_ids[: batch.num_rows]
        return ReadyResult(StepResult(token_ids, batch.samples.astype(np.int32)))

    def use_idle_time(self) -> bool:
        return False

    def control(self, method: str, args: list[Any]) -> Any:
        return None

    def shutdown(self) -> None:
        pass


def make_engine(num_rows: int, num_steps: int) -> Engine:
    """An engine with `num_rows` requests that will not end within `num_steps`."""
    max_model_len = PROMPT_LEN + BLOCK_SIZE + num_steps + 64
    info = EngineInfo(
        max_model_len=max_model_len,
        num_blocks=num_rows * (max_model_len // BLOCK_SIZE + 1) + 16,
        block_size=BLOCK_SIZE,
        max_num_seqs=num_rows,
        max_num_batched_tokens=8192,
    )
    config = EngineConfig(
        model="none",
        served_model_names=("none",),
        device="cpu",
        dtype="float32",
        max_model_len=max_model_len,
        max_num_seqs=num_rows,
        max_num_queued_reqs=0,
        hash_key=HASH_KEY,
    )
    engine = Engine(config, InstantExecutor(info))
    rng = np.random.default_rng(1)
    for index in range(num_rows):
        prompt = rng.integers(10, 50_000, PROMPT_LEN + index % BLOCK_SIZE, np.int32)
        engine.add_request(
            AddRequest(
                request_id=f"request-{index}",
                client_id=0,
                token_ids=prompt.tobytes(),
                block_hashes=hash_blocks(prompt, BLOCK_SIZE, bytes.fromhex(HASH_KEY)),
                params=SamplingParams(max_tokens=num_steps + 32, eos_token_ids=[2]),
            )
        )
    return engine


def measure(num_rows: int, num_steps: int) -> dict[str, float]:
    """Microseconds per step: mean processor time; median and 99th percentile by the clock."""
    engine = make_engine(num_rows, num_steps + 64)
    while engine.stats().num_waiting or engine.scheduler.slots.prefilling():
        engine.step()
    for _ in range(16):
        engine.step()
    times = np.zeros(num_steps)
    begin_cpu = time.thread_time()
    for step in range(num_steps):
        begin = time.perf_counter()
        deltas = engine.step()
        times[step] = time.perf_counter() - begin
        assert len(deltas) == num_rows
    cpu = (time.thread_time() - begin_cpu) / num_steps
    micros = times * 1e6
    return {
        "cpu_us": round(cpu * 1e6, 1),
        "median_us": round(float(np.median(micros)), 1),
        "p99_us": round(float(np.percentile(micros, 99)), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    rounds = [
        {num_rows: measure(num_rows, args.steps) for num_rows in ROW_COUNTS}
        for _ in range(args.rounds)
    ]
    best = {n: min((r[n] for r in rounds), key=lambda m: m["median_us"]) for n in ROW_COUNTS}
    print(f"{'rows':>6} {'cpu us':>9} {'median us':>10} {'p99 us':>9}")
    for num_rows, numbers in best.items():
        cpu, median, p99 = numbers.values()
        print(f"{num_rows:>6} {cpu:>9} {median:>10} {p99:>9}")
    if args.json:
        content = {
            "machine": platform.processor() or platform.machine(),
            "rounds": args.rounds,
            "rows": {str(num_rows): numbers for num_rows, numbers in best.items()},
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()

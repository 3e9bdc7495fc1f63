"""Steps with prompts, alone and beside decode rows: eager against CUDA graphs, random weights.

    PYTHONPATH=src python3 benchmarks/packed_steps.py [qwen3-0.6b llama-8b]

Milliseconds of a step, three ways: `each` when the next one is launched before the result of the
one before is awaited, as the engine does; `alone` from launch to result; `host` for the calls that
launch it. The runner is driven by hand: no scheduler, no memory fit, no HTTP. Ends with an error
when a step that should be a graph is not.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from offline import COMMON, SHAPES
from pagemill.attention.select import select_attention
from pagemill.checkpoint.hf_config import model_config_from_hf
from pagemill.config.engine import EngineConfig
from pagemill.device.cuda import CudaDevice
from pagemill.layers.base import BuildContext
from pagemill.models.base import Model
from pagemill.models.loader import load_model
from pagemill.ops.select import select_ops
from pagemill.params import SamplingParams
from pagemill.quant.select import select_quant
from pagemill.runner.memory import allocate_cache
from pagemill.runner.runner import ModelRunner
from pagemill.scheduler.batch import Admission, Batch, NewBlocks

BLOCK_SIZE = 16
MAX_ROWS = 256
MAX_LEN = 2048
CONTEXT = 384  # tokens of a decode row
BLOCKS_PER_ROW = 64  # the largest prompt, and decode rows that grow meanwhile
WARMUP = 8  # the graph is captured in the fourth step
PARAMS = SamplingParams(temperature=0.6)


@dataclass(frozen=True)
class Case:
    """A step of one prompt and some rows that compute one token."""

    decode_rows: int
    prompt_tokens: int

    def __str__(self) -> str:
        beside = f"{self.decode_rows} decode rows + " if self.decode_rows else ""
        return f"{beside}1 x {self.prompt_tokens}"


# So that no graph is captured when it could stand in for a later case.
CASES = (Case(0, 128), Case(0, 512), Case(0, 1024), Case(31, 512), Case(255, 512))


class CountingDevice(CudaDevice):
    """Counts graphs and how often they were replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.num_replayed = 0

    def capture(self, work: Callable[[], None]) -> Any:
        graph, device = super().capture(work), self

        class Counted:
            def replay(self) -> None:
                device.num_replayed += 1
                graph.replay()

        return Counted()


def engine_config(graphs: bool) -> EngineConfig:
    return EngineConfig(
        model="",
        served_model_names=("m",),
        device="cuda",
        dtype="bfloat16",
        max_model_len=MAX_LEN,
        max_num_seqs=MAX_ROWS,
        max_num_batched_tokens=8192,
        block_size=BLOCK_SIZE,
        cuda_graphs=graphs,
    )


def make_model(name: str, device: CudaDevice) -> tuple[Model, BuildContext]:
    ops = select_ops("cuda")
    quant = select_quant("none", "cuda", ops)
    context = BuildContext(device.torch_device, torch.bfloat16, ops, quant)
    config = replace(model_config_from_hf(COMMON | SHAPES[name]), max_position=MAX_LEN)
    return load_model(config, context, None), context


def admission(slot: int, num_computed: int, num_tokens: int) -> Admission:
    first = 1 + slot * BLOCKS_PER_ROW
    blocks = np.arange(first, first + BLOCKS_PER_ROW, dtype=np.int32)[:, None]
    text = np.random.default_rng(slot).integers(10, 40_000, num_tokens).astype(np.int32)
    return Admission(slot, f"r{slot}", PARAMS, slot, blocks, num_computed, text, num_tokens)


def make_batch(case: Case, first: bool) -> Batch:
    """The step, which may be repeated: its prompt is admitted anew each time."""
    n = case.decode_rows
    prompt = admission(n, 0, case.prompt_tokens)
    nothing = np.zeros(0, np.int32)
    num_query = np.array([1] * n + [case.prompt_tokens], np.int32)
    start = np.array([CONTEXT] * n + [0], np.int32)
    grown = CONTEXT + 4 * (WARMUP + 100)
    return Batch(
        slots=np.arange(n + 1, dtype=np.int32),
        num_query=num_query,
        num_drafts=np.zeros(n + 1, np.int32),
        start=start,
        samples=np.ones(n + 1, np.bool_),
        resident=np.array([True] * n + [False]),
        prompt_tokens=prompt.token_ids,
        new_blocks=NewBlocks(nothing, nothing, np.zeros((0, 1), np.int32)),
        admitted=[*(admission(s, CONTEXT, CONTEXT) for s in range(n) if first), prompt],
        num_tokens=n + case.prompt_tokens,
        max_query_len=case.prompt_tokens,
        max_seq_len=max(grown if n else 0, case.prompt_tokens),
    )


def each(runner: ModelRunner, batch: Batch, steps: int) -> tuple[float, float]:
    """Milliseconds of a step and of the host's part, with one step in flight."""
    pending, host = None, 0.0
    begin = time.perf_counter()
    for _ in range(steps):
        launched = time.perf_counter()
        runner.forward(batch)
        following = runner.sample(batch)
        host += time.perf_counter() - launched
        if pending is not None:
            pending.wait()
        pending = following
    assert pending is not None
    pending.wait()
    return (time.perf_counter() - begin) * 1e3 / steps, host * 1e3 / steps


def alone(runner: ModelRunner, batch: Batch, steps: int) -> float:
    """Median milliseconds from a step's launch to its result."""
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        runner.forward(batch)
        runner.sample(batch).wait()
        times.append(time.perf_counter() - begin)
    return float(np.median(times)) * 1e3


def measure(runner: ModelRunner, case: Case, steps: int) -> tuple[float, float, float]:
    """`each`, `alone` and `host` of the module's docstring."""
    batch = make_batch(case, first=True)
    for _ in range(WARMUP):
        runner.forward(batch)
        result = runner.sample(batch).wait()
        batch = make_batch(case, first=False)
    assert result.token_ids.shape == (case.decode_rows + 1, 1), result.token_ids.shape
    together, host = each(runner, batch, steps)
    return together, alone(runner, batch, steps), host


def run_model(name: str, steps: int) -> None:
    begin = time.perf_counter()
    device = CountingDevice()
    model, context = make_model(name, device)
    attention = select_attention("cuda", "default")
    num_blocks = 1 + MAX_ROWS * BLOCKS_PER_ROW
    specs = model.kv_cache_specs()
    cache = allocate_cache(device, specs, num_blocks, BLOCK_SIZE, torch.bfloat16)
    device.synchronize()
    print(f"{name} ready after {time.perf_counter() - begin:.1f} s", flush=True)
    for graphs in (False, True):
        runner = ModelRunner(
            engine_config(graphs),
            model,
            device,
            attention,
            cache,
            decode_ops=context.ops,  # type: ignore[arg-type]
            sampling_ops=context.ops,  # type: ignore[arg-type]
        )
        for case in CASES:
            before = device.num_replayed
            together, latency, host = measure(runner, case, steps)
            replayed = device.num_replayed - before
            kind = "graph" if graphs else "eager"
            print(
                f"{name:11s} {case!s:28s} {kind}  each {together:7.3f}  alone {latency:7.3f}  "
                f"host {host:7.3f} ms",
                flush=True,
            )
            if graphs and replayed < 2 * steps:
                raise SystemExit(f"only {replayed} of the steps above were graphs")
    print(f"{name}: {time.perf_counter() - begin:.1f} s in all", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["qwen3-0.6b", "llama-8b"])
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    for name in args.models:
        run_model(name, args.steps)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

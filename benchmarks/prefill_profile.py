"""Where the time of steps with prompts goes: kernels by time, and the share the GPU is idle.

    PYTHONPATH=src python3 benchmarks/prefill_profile.py qwen3-0.6b [--case nano256] [--eager]

The prompts of a case of `offline.py`, each answered by one token at the case's temperature, so
that every step has prompts in it. Run once to warm up, `--repeats` times by the clock, and once
with the profiler, which slows the host.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from decode_profile import kernels, report
from offline import CASES, SHAPES, Case, run, write_model
from pagemill import LLM


def prompts_only(case: Case) -> Case:
    return replace(case, tokens_out=(1, 1))


def repeat(llm: LLM, model: str, case: Case, times: int) -> None:
    for seed in range(times):
        timing = run(llm, model, case, random.Random(seed + 1))
        print(timing.line(), flush=True)


def profiled(work: Callable[[], object]) -> None:
    with profile(activities=[ProfilerActivity.CUDA]) as result:
        begin = time.perf_counter()
        work()
        print(f"with the profiler: {time.perf_counter() - begin:.3f} s")
    events = kernels(result, share=1.0)
    steps = max(1, sum("embedding" in name or "indexSelect" in name for name, _, _ in events))
    print(f"{len(events)} pieces of work, {steps} steps or so; figures are for all of them")
    report(events, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--case", default="nano256", choices=[case.name for case in CASES])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    case = prompts_only(next(case for case in CASES if case.name == args.case))
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        llm = LLM(
            str(write_model(args.model, Path(folder))),
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=4096,
            gpu_memory_utilization=0.88,
        )
        print(f"{args.model} ready after {time.perf_counter() - begin:.1f} s", flush=True)
        repeat(llm, args.model, case, args.repeats)
        profiled(lambda: run(llm, args.model, case, random.Random(9)))
        llm.shutdown()


if __name__ == "__main__":
    main()

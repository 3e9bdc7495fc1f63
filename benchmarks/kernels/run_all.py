"""Check every kernel on the card, then time it and its variants beside the card's limits.

    PYTHONPATH=src python3 benchmarks/kernels/run_all.py [--only decoder,vector] [--json FILE]

`limit us` is the time that the kernel's bytes (or, for prefill, its products) need at the rates
measured first; `share` is limit / time. A star marks the default. Exits 1 if any error is too big.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from attention import decode_results, prefill_results
from decoder import decoder_results
from elementwise import elementwise_results, sampling_results
from fp8 import fp8_results
from linear import vector_results
from timing import Limits, Result, header, measure_limits

MAX_ERROR = 2e-2
MAX_STEP_ERROR = 1e-1  # rounding to bfloat16 adds up over a whole model

SECTIONS: dict[str, Callable[[Limits], Iterator[Result]]] = {
    "decoder": decoder_results,
    "decode": decode_results,
    "prefill": prefill_results,
    "vector": vector_results,
    "elementwise": elementwise_results,
    "sampling": sampling_results,
    "fp8": fp8_results,
}


def run_section(name: str, limits: Limits) -> tuple[list[Result], bool]:
    """The section's results as they come, and whether it went through."""
    results: list[Result] = []
    try:
        for result in SECTIONS[name](limits):
            results.append(result)
            print(result.line(), flush=True)
    except Exception:  # noqa: BLE001 - one broken section must not cost the others' numbers
        traceback.print_exc()
        return results, False
    return results, True


def too_wrong(result: Result) -> bool:
    return result.error > (MAX_STEP_ERROR if " step " in result.case else MAX_ERROR)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    args = parser.parse_args()
    limits = measure_limits()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"copy {limits.bandwidth / 1e12:.2f} TB/s, bf16 {limits.flops / 1e12:.0f} TFLOP/s")
    print(header())
    results, whole = [], True
    for name in args.only.split(","):
        begin = time.monotonic()
        section, done = run_section(name, limits)
        results += section
        whole = whole and done
        torch.cuda.empty_cache()
        print(f"# {name}: {time.monotonic() - begin:.0f} s", flush=True)
    if args.json:
        args.json.write_text(json.dumps([result.record() for result in results], indent=1))
    wrong = [result for result in results if too_wrong(result)]
    for result in wrong:
        print("WRONG", result.line())
    return 1 if wrong or not whole else 0


if __name__ == "__main__":
    sys.exit(main())

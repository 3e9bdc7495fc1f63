"""Where a decode step's time goes: kernels by time, and the share in which the GPU is idle.

PYTHONPATH=src python3 benchmarks/decode_profile.py qwen3-0.6b [--requests 1 32] [--prompt 512]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from offline import SHAPES, write_model
from pagemill import LLM, SamplingParams

TOP = 16


def generate(llm: LLM, requests: int, prompt: int, tokens: int) -> None:
    prompts = [list(range(10 + i, 10 + prompt + i)) for i in range(requests)]
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    llm.generate(prompts, params, use_tqdm=False)


def kernels(profiled: profile, share: float) -> list[tuple[str, float, float]]:
    """(name, start us, end us) of the device's work in the last `share` of the time, in order."""
    events = [
        (event.name(), event.start_ns() / 1e3, (event.start_ns() + event.duration_ns()) / 1e3)
        for event in profiled.profiler.kineto_results.events()
        if event.device_type().name == "CUDA"
    ]
    events.sort(key=lambda event: event[1])
    first = events[-1][2] - share * (events[-1][2] - events[0][1])
    return [event for event in events if event[1] >= first]


def report(events: list[tuple[str, float, float]], steps: float) -> None:
    busy, end = 0.0, events[0][1]
    times: dict[str, list[float]] = defaultdict(list)
    for name, start, stop in events:
        times[name].append(stop - start)
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    span = end - events[0][1]
    print(f"span {span / steps:.1f} us a step, idle {100 * (1 - busy / span):.1f} %")
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))
    for name, durations in ranked[:TOP]:
        mean = sum(durations) / len(durations)
        share = sum(durations) / steps
        print(f"{share:9.1f} us a step {len(durations) / steps:7.1f} x {mean:8.2f} us  {name[:70]}")


def measure(llm: LLM, requests: int, prompt: int, tokens: int) -> None:
    generate(llm, requests, prompt, tokens)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        generate(llm, requests, prompt, tokens)
    events = kernels(profiled, share=0.5)
    steps = sum("decode_advance" in name for name, _, _ in events) or tokens / 2
    print(f"{requests} requests, prompts of {prompt} tokens")
    report(events, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--requests", type=int, nargs="+", default=[1])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        llm = LLM(
            str(write_model(args.model, Path(folder))),
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=4096,
        )
        print(args.model)
        for requests in args.requests:
            measure(llm, requests, args.prompt, args.tokens)


if __name__ == "__main__":
    main()

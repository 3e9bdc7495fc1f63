"""`pagemill bench throughput` and `bench latency`: the model in this process, without HTTP."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pagemill.bench.dataset import RandomShape, random_samples
from pagemill.errors import ConfigError
from pagemill.params import SamplingParams

if TYPE_CHECKING:
    from pagemill.llm import LLM

_PERCENTILES = (10, 25, 50, 75, 90, 99)


def bench_throughput(args: argparse.Namespace) -> int:
    """All prompts at once, as fast as they go. Raises ConfigError, ModelLoadError."""
    shape = RandomShape(
        args.random_input_len,
        args.random_output_len,
        args.random_range_ratio,
        args.random_prefix_len,
    )
    samples = random_samples(shape, args.num_prompts, np.random.default_rng(args.seed))
    llm = _load(args)
    prompts = [{"prompt_token_ids": sample.prompt} for sample in samples]
    params = [_params(sample.output_len, args.n) for sample in samples]
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    llm.shutdown()
    tokens_in = sum(sample.input_len for sample in samples)
    tokens_out = sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
    total = tokens_in + tokens_out
    print(
        f"Throughput: {len(samples) / seconds:.2f} requests/s, {total / seconds:.2f} total "
        f"tokens/s, {tokens_out / seconds:.2f} output tokens/s"
    )
    print(f"Total num prompt tokens:  {tokens_in}")
    print(f"Total num output tokens:  {tokens_out}")
    _save(
        args,
        {
            "elapsed_time": seconds,
            "num_requests": len(samples),
            "total_num_tokens": total,
            "requests_per_second": len(samples) / seconds,
            "tokens_per_second": total / seconds,
            "output_tokens_per_second": tokens_out / seconds,
        },
    )
    return 0


def bench_latency(args: argparse.Namespace) -> int:
    """One batch, again and again. Raises ConfigError, ModelLoadError."""
    if args.num_iters < 1 or args.num_iters_warmup < 0:
        raise ConfigError("--num-iters must be at least 1 and --num-iters-warmup at least 0")
    shape = RandomShape(args.input_len, args.output_len)
    samples = random_samples(shape, args.batch_size, np.random.default_rng(args.seed))
    llm = _load(args, enable_prefix_caching=False)
    prompts = [{"prompt_token_ids": sample.prompt} for sample in samples]
    params = _params(args.output_len, args.n)
    latencies = []
    for iteration in range(args.num_iters_warmup + args.num_iters):
        begin = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        if iteration >= args.num_iters_warmup:
            latencies.append(time.perf_counter() - begin)
    llm.shutdown()
    percentiles = {str(p): float(np.percentile(latencies, p)) for p in _PERCENTILES}
    average = float(np.mean(latencies))
    print(f"Avg latency: {average} seconds")
    for percentile, seconds in percentiles.items():
        print(f"{percentile}% percentile latency: {seconds} seconds")
    _save(args, {"avg_latency": average, "latencies": latencies, "percentiles": percentiles})
    return 0


def _load(args: argparse.Namespace, **options: Any) -> LLM:
    from pagemill.llm import LLM

    return LLM(skip_tokenizer_init=True, **args.llm_options, **options)


def _params(output_len: int, n: int) -> SamplingParams:
    return SamplingParams(
        n=n, temperature=1.0, max_tokens=output_len, ignore_eos=True, detokenize=False
    )


def _save(args: argparse.Namespace, content: dict[str, Any]) -> None:
    if args.output_json:
        Path(args.output_json).write_text(json.dumps(content, indent=4) + "\n")

"""Requests that share a long prefix, with the prefix cache on and off, in one run.

    python benchmarks/prefix_cache.py [--requests 32] [--prefix 1024] [--model MODEL]

Prints requests per second of both and their ratio. Each engine is warmed with other text first.
"""

from __future__ import annotations

import argparse
import random
import time

from pagemill import LLM, SamplingParams


def run(llm: LLM, prompts: list[list[int]], max_tokens: int) -> tuple[float, list[list[int]]]:
    """Seconds for all prompts, and the tokens they yielded."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    start = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    seconds = time.perf_counter() - start
    return seconds, [list(output.outputs[0].token_ids) for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prefix", type=int, default=1024, help="shared tokens")
    parser.add_argument("--suffix", type=int, default=16, help="own tokens of each request")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--model", default=None)
    args = parser.parse_args()
    rng = random.Random(0)

    def text(length: int) -> list[int]:
        return [rng.randrange(1000, 20_000) for _ in range(length)]

    shared = text(args.prefix)
    prompts = [shared + text(args.suffix) for _ in range(args.requests)]
    seconds, tokens = {}, {}
    for cached in (True, False):
        llm = LLM(args.model, enable_prefix_caching=cached, max_model_len=2048)
        run(llm, [text(64)], 4)
        seconds[cached], tokens[cached] = run(llm, prompts, args.max_tokens)
        name = "on" if cached else "off"
        print(f"cache {name}: {args.requests / seconds[cached]:.2f} requests/s", flush=True)
        llm.shutdown()
    same = sum(a == b for a, b in zip(tokens[True], tokens[False], strict=True))
    print(f"ratio {seconds[False] / seconds[True]:.2f}, {same} of {args.requests} outputs equal")


if __name__ == "__main__":
    main()

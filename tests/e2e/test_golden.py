"""Greedy tokens over HTTP equal those of Hugging Face transformers, whatever else is served."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from e2e.serving import RunningServer, golden_cases, serve

CASES = golden_cases("smollm2")
TIGHT = ("--max-num-batched-tokens", "16", "--max-num-seqs", "16", "--max-model-len", "448")
TINY_CACHE = ("--kv-cache-bytes", str(30 * 16 * 46080))  # 30 blocks; the longest request needs 25


def ask(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": None,
        "prompt": case["prompt"],
        "max_tokens": len(case["output"]),
        "temperature": 0,
        "extra_body": {"return_token_ids": True},
    }


def check(case: dict[str, Any], tokens: list[int]) -> None:
    """All tokens are equal; the message shows how clear the first different choice was."""
    pairs = enumerate(zip(case["output"], tokens, strict=False))
    first = next((i for i, (want, got) in pairs if want != got), None)
    if first is not None:
        pytest.fail(f"{case['text'][-40:]!r}: token {first}, logit gap {case['gaps'][first]}")
    assert len(tokens) == len(case["output"])


async def run_all(server: RunningServer, cases: list[dict[str, Any]], num_aborts: int = 0) -> None:
    """Send all at once, with `num_aborts` more that leave halfway, and check every output."""
    client = server.async_client()

    async def one(case: dict[str, Any]) -> None:
        answer = await client.completions.create(**ask(case))
        check(case, answer.choices[0].model_extra["token_ids"])

    async def leave(case: dict[str, Any], num_chunks: int) -> None:
        options = ask(case) | {"max_tokens": 60, "stream": True}
        options["extra_body"] = {"ignore_eos": True}
        stream = await client.completions.create(**options)
        async for _ in stream:
            num_chunks -= 1
            if num_chunks < 0:
                break
        await stream.close()

    rng = random.Random(0)
    jobs = [one(case) for case in cases]
    jobs += [leave(rng.choice(cases), rng.randrange(20)) for _ in range(num_aborts)]
    rng.shuffle(jobs)
    await asyncio.gather(*jobs)
    await client.close()


def test_one_at_a_time(server: RunningServer) -> None:
    client = server.client()
    for case in CASES:
        answer = client.completions.create(**ask(case))
        check(case, answer.choices[0].model_extra["token_ids"])
        assert answer.usage.completion_tokens == len(case["output"])


def test_32_at_once_with_aborts(server: RunningServer) -> None:
    asyncio.run(run_all(server, CASES + CASES[:12], num_aborts=6))
    server.wait(server.is_idle, 2)


@pytest.mark.parametrize("flags", [(), ("--no-overlap", "--no-prefix-cache")])
def test_chunked_prefill_and_preemption(flags: tuple[str, ...], log_folder: Path) -> None:
    with serve(log_folder, "--dtype", "float32", *TIGHT, *TINY_CACHE, *flags) as tight:
        tight.wait_ready()
        asyncio.run(run_all(tight, CASES, num_aborts=4))
        assert tight.metric("vllm:num_preemptions_total") > 0
        tight.wait(tight.is_idle, 2)

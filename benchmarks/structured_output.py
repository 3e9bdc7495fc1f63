"""Samples at temperature 1 under JSON schemas; every complete one must validate.

    python benchmarks/structured_output.py [--samples 25] [--model MODEL]
    python benchmarks/structured_output.py --url http://127.0.0.1:8000

Runs `samples` requests for each of the schemas in data/json_schemas.json, in one batch or, with
`--url`, over HTTP through the chat API of a server that runs: every second one as a stream. A
sample that meets the token limit before its end is counted apart: only its beginning can be
judged. Exits 1 when a complete sample does not validate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema

SCHEMAS = Path(__file__).parent / "data" / "json_schemas.json"
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Job:
    """One sample to make."""

    name: str
    schema: dict[str, Any]
    seed: int

    @property
    def prompt(self) -> str:
        return f"Write one JSON value called {self.name}.\n"


@dataclass(frozen=True)
class Sample:
    text: str
    finish_reason: str | None
    num_tokens: int


def judge(text: str, schema: dict[str, Any]) -> str | None:
    """Why `text` does not match the schema, None when it does."""
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{text!r}: {error}"
    return None


def run_offline(jobs: list[Job], model: str | None, max_tokens: int) -> list[Sample]:
    """All in one batch of this process."""
    from pagemill import LLM, SamplingParams
    from pagemill.params import StructuredOutputs

    llm = LLM(model, max_model_len=max_tokens + 256)
    params = [
        SamplingParams(
            temperature=1.0,
            max_tokens=max_tokens,
            seed=job.seed,
            structured_outputs=StructuredOutputs(json=job.schema),
        )
        for job in jobs
    ]
    outputs = [output.outputs[0] for output in llm.generate([job.prompt for job in jobs], params)]
    return [Sample(out.text, out.finish_reason, len(out.token_ids)) for out in outputs]


async def run_over_http(
    jobs: list[Job], url: str, max_tokens: int, num_clients: int
) -> list[Sample]:
    """Through the chat API, `num_clients` at a time; jobs with an odd seed stream."""
    places = asyncio.Semaphore(num_clients)

    async def one(http: httpx.AsyncClient, job: Job) -> Sample:
        body = {
            "messages": [{"role": "user", "content": job.prompt}],
            "temperature": 1.0,
            "seed": job.seed,
            "max_tokens": max_tokens,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "sample", "strict": True, "schema": job.schema},
            },
        }
        async with places:
            return await (_stream(http, body) if job.seed % 2 else _whole(http, body))

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS) as http:
        return await asyncio.gather(*(one(http, job) for job in jobs))


async def _whole(http: httpx.AsyncClient, body: dict[str, Any]) -> Sample:
    response = await http.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    answer = response.json()
    choice = answer["choices"][0]
    return Sample(
        choice["message"]["content"], choice["finish_reason"], answer["usage"]["completion_tokens"]
    )


async def _stream(http: httpx.AsyncClient, body: dict[str, Any]) -> Sample:
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    text, reason, num_tokens = "", None, 0
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                return Sample(text, f"error: {event['error']['message']}", num_tokens)
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                reason = choice["finish_reason"] or reason
            if event.get("usage"):
                num_tokens = event["usage"]["completion_tokens"]
    return Sample(text, reason, num_tokens)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=25, help="per schema")
    parser.add_argument("--model", default=None)
    parser.add_argument("--url", default=None, help="of a server, instead of --model")
    parser.add_argument("--clients", type=int, default=32, help="at once, with --url")
    parser.add_argument("--max-tokens", type=int, default=400)
    args = parser.parse_args()
    schemas = json.loads(SCHEMAS.read_text())
    jobs = [Job(name, schema, i) for name, schema in schemas.items() for i in range(args.samples)]
    start = time.perf_counter()
    if args.url is None:
        samples = run_offline(jobs, args.model, args.max_tokens)
    else:
        samples = asyncio.run(run_over_http(jobs, args.url, args.max_tokens, args.clients))
    seconds = time.perf_counter() - start
    cut, wrong = [], []
    for job, sample in zip(jobs, samples, strict=True):
        reason = judge(sample.text, job.schema) if sample.finish_reason == "stop" else None
        if sample.finish_reason == "length":
            cut.append(job.name)
        elif reason or sample.finish_reason != "stop":
            wrong.append(f"{job.name}: {sample.finish_reason}: {reason}")
    num_tokens = sum(sample.num_tokens for sample in samples)
    print(*wrong, sep="\n")
    print(
        f"{len(jobs)} samples over {len(schemas)} schemas: {len(jobs) - len(cut) - len(wrong)} "
        f"valid, {len(cut)} cut at {args.max_tokens} tokens {sorted(set(cut))}, {len(wrong)} wrong;"
        f" {num_tokens} tokens, {num_tokens / seconds:.0f} tokens/s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

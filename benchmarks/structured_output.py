"""Samples at temperature 1 under JSON schemas; every complete one must validate.

    python benchmarks/structured_output.py [--samples 25] [--model MODEL]

Runs `samples` requests for each of the schemas in data/json_schemas.json, in one batch. A sample
that meets the token limit before its end is counted apart: only its beginning can be judged.
Exits 1 when a complete sample does not validate.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jsonschema

from pagemill import LLM, SamplingParams
from pagemill.params import StructuredOutputs

SCHEMAS = Path(__file__).parent / "data" / "json_schemas.json"


def judge(text: str, schema: dict[str, Any]) -> str | None:
    """Why `text` does not match the schema, None when it does."""
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{text!r}: {error}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=25, help="per schema")
    parser.add_argument("--model", default=None)
    parser.add_argument("--max-tokens", type=int, default=400)
    args = parser.parse_args()
    schemas = json.loads(SCHEMAS.read_text())
    llm = LLM(args.model, max_model_len=1024)
    jobs = [(name, seed) for name in schemas for seed in range(args.samples)]
    params = [
        SamplingParams(
            temperature=1.0,
            max_tokens=args.max_tokens,
            seed=seed,
            structured_outputs=StructuredOutputs(json=schemas[name]),
        )
        for name, seed in jobs
    ]
    prompts = [f"Write one JSON value called {name}.\n" for name, _ in jobs]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - start
    cut, wrong = 0, []
    for (name, _), output in zip(jobs, outputs, strict=True):
        choice = output.outputs[0]
        cut += choice.finish_reason == "length"
        reason = judge(choice.text, schemas[name]) if choice.finish_reason == "stop" else None
        if reason or choice.finish_reason not in ("stop", "length"):
            wrong.append(f"{name}: {choice.finish_reason}: {reason}")
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(*wrong, sep="\n")
    print(
        f"{len(jobs)} samples over {len(schemas)} schemas: {len(jobs) - cut - len(wrong)} valid, "
        f"{cut} cut at {args.max_tokens} tokens, {len(wrong)} wrong; "
        f"{tokens / seconds:.0f} tokens/s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

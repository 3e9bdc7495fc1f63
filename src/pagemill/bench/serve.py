"""`pagemill bench serve`: load on a running server, and its figures."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from pagemill.bench.dataset import RandomShape, Sample, load_tokenizer, random_samples
from pagemill.bench.http_stream import Target
from pagemill.bench.load import Load, run, start_times
from pagemill.bench.records import Call, Record
from pagemill.bench.summary import (
    details,
    parse_goodput,
    parse_metrics,
    parse_percentiles,
    print_errors,
    print_summary,
    summarise,
)
from pagemill.errors import ConfigError, PageMillError

_ENDPOINTS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
_PROBE_SECONDS = 5.0


def bench_serve(args: argparse.Namespace) -> int:
    """Run the load; 1 when a request failed. Raises ConfigError, PageMillError."""
    metrics = parse_metrics(args.percentile_metrics)
    percentiles = parse_percentiles(args.metric_percentiles)
    goodput = parse_goodput(args.goodput)
    target = target_of(args)
    wait_ready(target, args.ready_check_timeout_sec)
    model = args.served_model_name or args.model or first_model(target)
    rng = np.random.default_rng(args.seed)
    samples = _samples(args, rng)
    calls = make_calls(args, model, samples, rng)
    _warm_up(args, target, calls)
    limit = args.max_concurrency or 0
    records = run(Load(target, calls, limit, args.save_detailed), args.processes)
    figures = summarise(records, percentiles=percentiles, goodput=goodput)
    print_summary(
        figures,
        metrics=metrics,
        percentiles=percentiles,
        max_concurrency=args.max_concurrency,
        request_rate=args.request_rate,
    )
    print_errors(records)
    if args.save_result:
        print(f"saved as {_save(args, model, figures, records)}")
    return int(figures["failed"] > 0)


def target_of(args: argparse.Namespace) -> Target:
    """Where the flags point. Raises ConfigError."""
    url = args.base_url or f"http://{args.host}:{args.port}"
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"--base-url must be http://HOST:PORT, got {url!r}")
    key = os.environ.get("OPENAI_API_KEY") or os.environ.get("PAGEMILL_API_KEY")
    headers = [f"Authorization: Bearer {key}"] if key else []
    for pair in args.header:
        name, found, value = pair.partition("=")
        if not found or any(c in pair for c in "\r\n"):
            raise ConfigError(f"--header takes NAME=VALUE, got {pair!r}")
        headers.append(f"{name}: {value}")
    path = parts.path.rstrip("/") + (args.endpoint or _ENDPOINTS[args.backend])
    return Target(parts.hostname, parts.port or 80, path, tuple(headers))


def get(target: Target, path: str) -> tuple[int, bytes]:
    """A GET request's status and body. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=_PROBE_SECONDS)
    headers = dict(line.split(": ", 1) for line in target.headers)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_ready(target: Target, seconds: float) -> None:
    """Wait until the server lists its models; at once an error when `seconds` is 0.

    Raises PageMillError.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            status, _ = get(target, "/v1/models")
            ready, _ = get(target, "/health")
            problem = f"/v1/models gives {status}, /health {ready}"
            if status == 200 and ready in (200, 404):
                return
        except (OSError, http.client.HTTPException) as error:
            problem = str(error)
        if time.monotonic() >= deadline:
            raise PageMillError(f"no server is ready at {target.host}:{target.port}: {problem}")
        time.sleep(0.2)


def first_model(target: Target) -> str:
    """The first name that the server answers to. Raises PageMillError."""
    _, body = get(target, "/v1/models")
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise PageMillError("the server's list of models cannot be read; give --model") from None


def make_calls(
    args: argparse.Namespace, model: str, samples: Sequence[Sample], rng: np.random.Generator
) -> tuple[Call, ...]:
    """The requests with their bodies and times. Raises ConfigError."""
    if args.request_rate <= 0 or args.burstiness <= 0:
        raise ConfigError("--request-rate and --burstiness must be above 0")
    starts = start_times(len(samples), args.request_rate, args.burstiness, rng)
    return tuple(
        Call(_body(args, model, sample), sample.input_len, sample.output_len, start)
        for sample, start in zip(samples, starts, strict=True)
    )


def _samples(args: argparse.Namespace, rng: np.random.Generator) -> list[Sample]:
    if args.num_prompts < 1:
        raise ConfigError("--num-prompts must be at least 1")
    shape = RandomShape(
        args.random_input_len,
        args.random_output_len,
        args.random_range_ratio,
        args.random_prefix_len,
    )
    tokenizer = load_tokenizer(args.tokenizer or args.model)
    if args.backend == "openai-chat" and tokenizer is None:
        raise ConfigError("--backend openai-chat needs --tokenizer, a folder with tokenizer.json")
    return random_samples(shape, args.num_prompts, rng, tokenizer)


def _body(args: argparse.Namespace, model: str, sample: Sample) -> bytes:
    body: dict[str, Any] = {"model": model}
    if args.backend == "openai-chat":
        body["messages"] = [{"role": "user", "content": sample.prompt}]
        body["max_completion_tokens"] = sample.output_len
    else:
        body |= {"prompt": sample.prompt, "max_tokens": sample.output_len}
    body |= {"temperature": args.temperature, "stream": True}
    body["stream_options"] = {"include_usage": True}
    if args.ignore_eos:
        body["ignore_eos"] = True
    try:
        body |= json.loads(args.extra_body)
    except (ValueError, TypeError):
        raise ConfigError("--extra-body must be a JSON object") from None
    return json.dumps(body).encode()


def _warm_up(args: argparse.Namespace, target: Target, calls: Sequence[Call]) -> None:
    """Requests that do not count. Raises PageMillError when they fail."""
    if not args.num_warmups:
        return
    some = tuple(calls[i % len(calls)] for i in range(args.num_warmups))
    at_once = tuple(Call(call.body, call.input_len, call.output_len) for call in some)
    for record in run(Load(target, at_once, args.max_concurrency or 0), 1):
        if record.error:
            raise PageMillError(f"a warm-up request failed: {record.error}")


def _save(
    args: argparse.Namespace, model: str, figures: dict[str, Any], records: Sequence[Record]
) -> Path:
    now = datetime.now()
    rate = "inf" if args.request_rate == float("inf") else args.request_rate
    content = {
        "date": now.strftime("%Y%m%d-%H%M%S"),
        "backend": args.backend,
        "model_id": model,
        "tokenizer_id": args.tokenizer or args.model,
        "num_prompts": args.num_prompts,
        "request_rate": rate,
        "burstiness": args.burstiness,
        "max_concurrency": args.max_concurrency,
        **figures,
        **(details(records) if args.save_detailed else {}),
    }
    stem = f"{args.backend}-{rate}qps-{Path(model).name}-{content['date']}.json"
    path = Path(args.result_dir) / (args.result_filename or stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n")
    return path

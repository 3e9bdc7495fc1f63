"""Thousands of streams at once, and silence in between, over an engine without a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from e2e.serving import RunningServer, serve_fake
from pagemill.bench.http_stream import Target
from pagemill.bench.load import Load, run
from pagemill.bench.records import Call
from pagemill.bench.summary import summarise

NUM_STREAMS = 2000
FLAGS = ("--sse-keep-alive", "0.2", "--max-num-queued-reqs", "100", "--log-level", "warning")


@pytest.fixture(scope="module")
def slow(log_folder: Path) -> Iterator[RunningServer]:
    """A token every 0.7 seconds."""
    options = {"step_ms": 700.0, "max_num_seqs": NUM_STREAMS}
    with serve_fake(log_folder, *FLAGS, **options) as running:
        running.wait(lambda: "PageMill answers" in running.output(), 60)
        yield running


def call(max_tokens: int) -> Call:
    body = {"prompt": "x", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}  # late tokens may come several in one event
    return Call(json.dumps(body).encode(), 1, max_tokens)


def test_2000_streams_at_once(slow: RunningServer) -> None:
    target = Target("127.0.0.1", int(slow.url.rsplit(":", 1)[1]), "/v1/completions")
    records = run(Load(target, (call(8),) * NUM_STREAMS), 1)
    figures = summarise(records, percentiles=(), goodput={})
    assert {record.error for record in records} == {""}
    assert {record.output_len for record in records} == {8}
    assert figures["max_concurrent_requests"] == NUM_STREAMS
    memory = psutil.Process(slow.process.pid).memory_info().rss
    assert memory < 500 * 2**20
    slow.wait(slow.is_idle, 5)
    assert slow.metric("vllm:generation_tokens_total") == 8 * NUM_STREAMS


def test_silence_is_filled_with_comments(slow: RunningServer) -> None:
    body = {"prompt": "x", "max_tokens": 3, "stream": True}
    text = httpx.post(f"{slow.url}/v1/completions", json=body, timeout=20).text
    assert text.count(": keep-alive\n\n") >= 4
    assert text.count('"choices":[{') == 3
    assert text.endswith("data: [DONE]\n\n")

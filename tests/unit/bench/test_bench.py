"""The load generator's arithmetic, and its client against a server that speaks the API."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from api.fakes import REPLY, FakeClient, make_context, overloaded
from api.live import serve
from pagemill.bench.dataset import RandomShape, random_samples
from pagemill.bench.http_stream import Connection, Target
from pagemill.bench.load import Load, run, start_times
from pagemill.bench.records import Call, Record
from pagemill.bench.summary import parse_goodput, summarise
from pagemill.cli.main import main
from pagemill.errors import ConfigError
from unit.frontend.vocabularies import byte_level


def test_lengths_lie_within_the_range() -> None:
    shape = RandomShape(100, 20, range_ratio=0.5, prefix_len=7)
    samples = random_samples(shape, 200, np.random.default_rng(0))
    assert {min(107, s.input_len) for s in samples} != {107}
    assert all(57 <= s.input_len <= 157 and len(s.prompt) == s.input_len for s in samples)
    assert all(10 <= s.output_len <= 30 for s in samples)
    assert len({tuple(s.prompt[:7]) for s in samples}) == 1
    with pytest.raises(ConfigError, match="range-ratio"):
        random_samples(RandomShape(1, 1, 1.0), 1, np.random.default_rng(0))


def test_texts_have_the_tokens_that_they_claim() -> None:
    backend = byte_level().backend
    samples = random_samples(RandomShape(30, 4), 20, np.random.default_rng(0), backend)
    for sample in samples:
        assert isinstance(sample.prompt, str)
        assert sample.input_len == len(backend.encode(sample.prompt, add_special_tokens=False).ids)


def test_arrivals_keep_the_rate() -> None:
    rng = np.random.default_rng(0)
    assert start_times(3, float("inf"), 1.0, rng) == [0.0, 0.0, 0.0]
    for burstiness in (0.5, 1.0, 100.0):
        times = start_times(4000, 10.0, burstiness, rng)
        assert times == sorted(times)
        assert times[-1] == pytest.approx(400, rel=0.1)


def record(sent: float, times: list[float], tokens: int, error: str = "") -> Record:
    return Record(10, sent, times[-1] if times else sent, times, tokens, error)


def test_figures_of_known_records() -> None:
    records = [
        record(0.0, [0.1, 0.2, 0.3], 3),
        record(0.2, [1.5, 2.0], 2),
        record(0.6, [], 0, "HTTP 503"),
    ]
    figures = summarise(records, percentiles=(50,), goodput={"ttft": 500.0})
    assert (figures["completed"], figures["failed"]) == (2, 1)
    assert figures["duration"] == pytest.approx(2.0)
    assert figures["output_throughput"] == pytest.approx(2.5)
    assert figures["total_token_throughput"] == pytest.approx(12.5)
    assert figures["request_goodput"] == pytest.approx(0.5)
    assert figures["mean_ttft_ms"] == pytest.approx(700)
    assert figures["median_tpot_ms"] == pytest.approx(300)
    assert figures["p50_itl_ms"] == pytest.approx(100)
    assert figures["max_concurrent_requests"] == 2
    assert figures["max_output_tokens_per_s"] == 3


def test_goodput_names_its_mistakes() -> None:
    assert parse_goodput(["ttft:100", "e2el:5"]) == {"ttft": 100.0, "e2el": 5.0}
    for wrong in ("ttft", "speed:3", "ttft:fast"):
        with pytest.raises(ConfigError, match="--goodput"):
            parse_goodput([wrong])


STREAM = (
    b'data: {"id":"a","choices":[{"text":"x"}]}\n\n'
    b'data: {"id":"a", "choices": [{"text":"\\"choices\\":[]"}]}\n\n'
    b": keep-alive\n\n"
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)


@pytest.mark.parametrize("size", [1, 2, 7, 16, 50, 1000])
def test_events_are_counted_however_they_are_split(size: int) -> None:
    connection = Connection()
    connection._record = found = Record(1)
    for start in range(0, len(STREAM), size):
        connection.on_body(STREAM[start : start + size])
    assert len(found.times) == 2


def call(prompt: str, **fields: object) -> Call:
    body = {"prompt": prompt, "stream": True, "stream_options": {"include_usage": True}, **fields}
    return Call(json.dumps(body).encode(), len(prompt), 5)


def test_the_client_reads_streams_and_errors() -> None:
    with serve(make_context(FakeClient())) as url:
        host, port = url.removeprefix("http://").split(":")
        target = Target(host, int(port), "/v1/completions")
        calls = tuple(call("abc", max_tokens=5) for _ in range(6))
        good = run(Load(target, calls, 2), 1)
        (bad,) = run(Load(target, (call("", n=3),)), 1)
        (lost,) = run(Load(Target(host, 1, "/"), calls[:1]), 1)
    assert [(r.error, r.output_len, r.input_len, len(r.times)) for r in good] == [("", 5, 3, 5)] * 6
    assert bad.error.startswith("HTTP 400") and "prompt" in bad.error
    assert lost.error.startswith("no connection")


def test_bench_serve_prints_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "serve", "--num-prompts", "4", "--random-input-len", "5", "--ignore-eos"]
    argv += ["--random-output-len", "8", "--save-result", "--result-dir", str(tmp_path)]
    argv += ["--percentile-metrics", "ttft,e2el", "--extra-body", '{"prompt": "hello"}']
    with serve(make_context(FakeClient())) as url:
        assert main([*argv, "--base-url", url, "--num-warmups", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Serving Benchmark Result" in printed and "P99 E2EL (ms):" in printed
    (path,) = tmp_path.iterdir()
    saved = json.loads(path.read_text())
    assert (saved["completed"], saved["total_output_tokens"]) == (4, 4 * 8)
    assert {"request_throughput", "median_tpot_ms", "p99_itl_ms"} <= saved.keys()


def test_bench_serve_reports_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "serve", "--num-prompts", "2", "--extra-body", '{"prompt": "hello"}']
    with serve(make_context(FakeClient(raises=overloaded()))) as url:
        assert main([*argv, "--base-url", url]) == 1
        assert main([*argv, "--base-url", url, "--num-warmups", "1"]) == 1
    captured = capsys.readouterr()
    assert "HTTP 503" in captured.out
    assert "a warm-up request failed" in captured.err


def test_no_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--port", "1", "--num-prompts", "1"]) == 1
    assert "no server is ready" in capsys.readouterr().err
    assert len(REPLY) > 8

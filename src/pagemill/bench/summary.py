"""From the records of a benchmark to its figures, under the names that `vllm bench serve` uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pagemill.bench.records import Record
from pagemill.errors import ConfigError

METRICS = ("ttft", "tpot", "itl", "e2el")
_TITLES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}
_WIDTH = 50
_MAX_ERRORS_SHOWN = 3


def summarise(
    records: Sequence[Record],
    *,
    percentiles: Sequence[float],
    goodput: Mapping[str, float],
) -> dict[str, Any]:
    """All figures of a run. `goodput` has upper bounds in milliseconds by metric."""
    good = [record for record in records if not record.error]
    begin = min(record.sent for record in records)
    duration = max(record.ended for record in records) - begin
    tokens_in = sum(record.input_len for record in good)
    tokens_out = sum(record.output_len for record in good)
    figures: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(records) - len(good),
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": len(good) / duration,
        "request_goodput": _goodput(good, goodput) / duration if goodput else None,
        "output_throughput": tokens_out / duration,
        "total_token_throughput": (tokens_in + tokens_out) / duration,
        "max_output_tokens_per_s": _peak_tokens(good, begin),
        "max_concurrent_requests": _peak_concurrency(records),
        "rtfx": 0.0,
    }
    for name, values in _latencies(good).items():
        figures |= _statistics(name, values, percentiles)
    return figures


def details(records: Sequence[Record]) -> dict[str, Any]:
    """The lists for `--save-detailed`, one entry for each request."""
    return {
        "input_lens": [record.input_len for record in records],
        "output_lens": [record.output_len for record in records],
        "ttfts": [record.ttft for record in records],
        "itls": [record.itls for record in records],
        "latencies": [record.latency for record in records],
        "start_times": [record.sent for record in records],
        "generated_texts": [record.text.decode(errors="replace") for record in records],
        "errors": [record.error for record in records],
    }


def print_summary(
    figures: Mapping[str, Any],
    *,
    metrics: Sequence[str],
    percentiles: Sequence[float],
    max_concurrency: int | None,
    request_rate: float,
) -> None:
    """The table that `vllm bench serve` prints."""
    print(f"{' Serving Benchmark Result ':=^{_WIDTH}}")
    _line("Successful requests:", figures["completed"])
    _line("Failed requests:", figures["failed"])
    if max_concurrency:
        _line("Maximum request concurrency:", max_concurrency)
    if request_rate != float("inf"):
        _line("Request rate configured (RPS):", request_rate)
    _line("Benchmark duration (s):", figures["duration"])
    _line("Total input tokens:", figures["total_input_tokens"])
    _line("Total generated tokens:", figures["total_output_tokens"])
    _line("Request throughput (req/s):", figures["request_throughput"])
    if figures["request_goodput"] is not None:
        _line("Request goodput (req/s):", figures["request_goodput"])
    _line("Output token throughput (tok/s):", figures["output_throughput"])
    _line("Peak output token throughput (tok/s):", float(figures["max_output_tokens_per_s"]))
    _line("Peak concurrent requests:", float(figures["max_concurrent_requests"]))
    _line("Total token throughput (tok/s):", figures["total_token_throughput"])
    for name in metrics:
        short, title = _TITLES[name]
        print(f"{title:-^{_WIDTH}}")
        _line(f"Mean {short} (ms):", figures[f"mean_{name}_ms"])
        _line(f"Median {short} (ms):", figures[f"median_{name}_ms"])
        for percentile in percentiles:
            key = f"p{percentile:g}"
            _line(f"{key.upper()} {short} (ms):", figures[f"{key}_{name}_ms"])
    print("=" * _WIDTH)


def print_errors(records: Sequence[Record]) -> None:
    """The first few different errors, if there were any."""
    errors = list(dict.fromkeys(record.error for record in records if record.error))
    for error in errors[:_MAX_ERRORS_SHOWN]:
        print(f"error: {error[:300]}")


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """`ttft:100 tpot:20` as bounds in milliseconds. Raises ConfigError."""
    bounds = {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        try:
            bounds[name] = float(value)
        except ValueError:
            raise ConfigError(f"--goodput takes NAME:MILLISECONDS, got {pair!r}") from None
        if name not in ("ttft", "tpot", "e2el"):
            raise ConfigError(f"--goodput knows ttft, tpot and e2el, got {name!r}")
    return bounds


def parse_metrics(text: str) -> list[str]:
    """`ttft,tpot` as names. Raises ConfigError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"--percentile-metrics knows {', '.join(METRICS)}, got {name!r}")
    return names


def parse_percentiles(text: str) -> list[float]:
    """`50,99` as numbers. Raises ConfigError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--metric-percentiles takes numbers, got {text!r}") from None
    if not all(0 <= value <= 100 for value in values):
        raise ConfigError(f"--metric-percentiles must be from 0 to 100, got {text!r}")
    return values


def _line(label: str, value: float) -> None:
    shown = f"{value:<10.2f}" if isinstance(value, float) else f"{value:<10}"
    print(f"{label:<40} {shown}")


def _latencies(good: Sequence[Record]) -> dict[str, list[float]]:
    """Seconds, by metric."""
    return {
        "ttft": [record.ttft for record in good],
        "tpot": [record.tpot for record in good if record.output_len > 1],
        "itl": [gap for record in good for gap in record.itls],
        "e2el": [record.latency for record in good],
    }


def _statistics(name: str, seconds: list[float], percentiles: Sequence[float]) -> dict[str, float]:
    values = np.asarray(seconds or [0.0]) * 1000
    found = {
        f"mean_{name}_ms": float(values.mean()),
        f"median_{name}_ms": float(np.median(values)),
        f"std_{name}_ms": float(values.std()),
    }
    for percentile in percentiles:
        found[f"p{percentile:g}_{name}_ms"] = float(np.percentile(values, percentile))
    return found


def _goodput(good: Sequence[Record], bounds: Mapping[str, float]) -> int:
    """How many requests kept all bounds."""

    def keeps(record: Record) -> bool:
        own = {"ttft": record.ttft, "tpot": record.tpot, "e2el": record.latency}
        return all(own[name] * 1000 <= bound for name, bound in bounds.items())

    return sum(map(keeps, good))


def _peak_tokens(good: Sequence[Record], begin: float) -> float:
    """Most events in one second, counted from the beginning."""
    times = np.asarray([time for record in good for time in record.times])
    if not len(times):
        return 0.0
    return float(np.bincount((times - begin).astype(int)).max())


def _peak_concurrency(records: Sequence[Record]) -> int:
    changes = [(record.sent, 1) for record in records] + [(r.ended, -1) for r in records]
    now = peak = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return peak

"""The engine's gauges and counters, read when someone scrapes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pagemill.engine.messages import STEP_SIZES, EngineInfo, EngineStats, EngineStatus

_GAUGES = (
    ("num_requests_running", "num_running", "Requests in the running batch."),
    ("num_requests_waiting", "num_waiting", "Requests waiting to be scheduled."),
    ("kv_cache_usage_perc", "kv_cache_usage", "Share of KV cache blocks in use, 0 to 1."),
)
_COUNTERS = (
    ("num_preemptions", "num_preemptions", "Requests preempted by the scheduler."),
    ("prefix_cache_queries", "prefix_cache_queries", "Tokens looked up in the prefix cache."),
    ("prefix_cache_hits", "prefix_cache_hits", "Tokens found in the prefix cache."),
    ("spec_decode_num_drafts", "num_drafts", "How often tokens were drafted for a request."),
    ("spec_decode_num_draft_tokens", "num_draft_tokens", "Drafted tokens."),
    ("spec_decode_num_accepted_tokens", "num_accepted_tokens", "Drafted tokens accepted."),
    ("engine_steps", "num_steps", "Steps of the engine's loop."),
)
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")  # by level
_INFO_FIELDS = (
    "block_size",
    "num_blocks",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "device",
    "dtype",
    "attention",
    "quantization",
)


class StatsSource(Protocol):
    """Where the engine's state is read; an EngineClient is one."""

    @property
    def status(self) -> EngineStatus: ...

    @property
    def info(self) -> EngineInfo: ...

    @property
    def stats(self) -> EngineStats: ...


class EngineCollector(Collector):
    """Turns `EngineStats` and `EngineInfo` into metrics with vLLM's names."""

    def __init__(self, source: StatsSource, labels: Mapping[str, str]) -> None:
        self._source = source
        self._names = list(labels)
        self._values = list(labels.values())

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not read the engine to know the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._source.stats
        for name, attribute, text in _GAUGES:
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=self._names)
            gauge.add_metric(self._values, float(getattr(stats, attribute)))
            yield gauge
        for name, attribute, text in _COUNTERS:
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=self._names)
            counter.add_metric(self._values, float(getattr(stats, attribute)))
            yield counter
        yield self._waiting_by_reason(stats)
        yield self._sleep_state(stats)
        yield self._accepted_by_position(stats)
        yield self._step_sizes(stats)
        if self._source.status.state == "ready":
            yield self._info(self._source.info)

    def _waiting_by_reason(self, stats: EngineStats) -> Metric:
        gauge = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Requests waiting for room (capacity), or for their grammar (deferred).",
            labels=[*self._names, "reason"],
        )
        capacity = stats.num_waiting - stats.num_deferred
        for reason, number in (("capacity", capacity), ("deferred", stats.num_deferred)):
            gauge.add_metric([*self._values, reason], float(number))
        return gauge

    def _sleep_state(self, stats: EngineStats) -> Metric:
        gauge = GaugeMetricFamily(
            "vllm:engine_sleep_state",
            "1 for the state that the engine is in.",
            labels=[*self._names, "sleep_state"],
        )
        for level, name in enumerate(_SLEEP_STATES):
            gauge.add_metric([*self._values, name], float(stats.sleep_level == level))
        return gauge

    def _accepted_by_position(self, stats: EngineStats) -> Metric:
        counter = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Drafted tokens accepted, by their place in the draft.",
            labels=[*self._names, "position"],
        )
        for position, number in enumerate(stats.accepted_by_position):
            counter.add_metric([*self._values, str(position)], float(number))
        return counter

    def _step_sizes(self, stats: EngineStats) -> Metric:
        histogram = HistogramMetricFamily(
            "vllm:iteration_tokens_total", "Tokens computed in a step.", labels=self._names
        )
        counts = stats.step_sizes or [0] * (len(STEP_SIZES) + 1)
        bounds = [*(f"{size:.1f}" for size in STEP_SIZES), "+Inf"]
        buckets = list(zip(bounds, itertools.accumulate(counts), strict=True))
        histogram.add_metric(self._values, buckets, sum_value=float(stats.tokens_computed))
        return histogram

    def _info(self, info: EngineInfo) -> Metric:
        names = [*self._names, *_INFO_FIELDS]
        gauge = GaugeMetricFamily(
            "vllm:cache_config_info", "The engine's settings, as labels.", labels=names
        )
        gauge.add_metric([*self._values, *(str(getattr(info, f)) for f in _INFO_FIELDS)], 1.0)
        return gauge

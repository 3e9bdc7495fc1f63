"""Prometheus metrics under vLLM's names, so that its dashboards work unchanged.

Two sources: the API observes the life of every request (`Metrics.request`) and every HTTP
exchange (`Metrics.observe_http`), and the engine's own counters are read from
`EngineClient.stats` when someone scrapes (`engine_collector.EngineCollector`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from pagemill.errors import RequestAborted
from pagemill.frontend.outputs import ChoiceUpdate, PooledOutput
from pagemill.metrics import buckets
from pagemill.metrics.cheap import CheapCounter, CheapHistogram
from pagemill.metrics.engine_collector import EngineCollector, StatsSource
from pagemill.metrics.merge import Family, Merged, snapshot
from pagemill.params import SamplingParams

LABELS = ("model_name", "engine")


class Metrics:
    """All metrics of one server, on a registry of their own."""

    def __init__(self, model_name: str, source: StatsSource, engine: str = "0") -> None:
        self.registry = CollectorRegistry()
        self._labels = (model_name, engine)
        self._named_labels = dict(zip(LABELS, self._labels, strict=True))
        self._engine = EngineCollector(source, self._named_labels)
        self.registry.register(self._engine)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._make_counters()
        # A labelled counter is looked up under a lock; there are few, so each is looked up once.
        self._success_of = cache(self._success.labels)
        self._sources_of = cache(self._prompt_tokens_by_source.labels)
        self._http_of = cache(self._http.labels)
        self._http_total_of = cache(self._http_total.labels)
        self._make_latencies()
        self._make_sizes()

    def _counter(self, name: str, text: str) -> CheapCounter:
        counter = CheapCounter(f"vllm:{name}", text, self._named_labels)
        self.registry.register(counter)
        return counter

    def _histogram(self, name: str, text: str, bounds: Sequence[float]) -> CheapHistogram:
        histogram = CheapHistogram(f"vllm:{name}", text, self._named_labels, bounds)
        self.registry.register(histogram)
        return histogram

    def _make_counters(self) -> None:
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of started requests.")
        self.prompt_tokens_cached = self._counter(
            "prompt_tokens_cached", "Prompt tokens that came from the prefix cache."
        )
        self.generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self._success = Counter(
            "vllm:request_success",
            "Finished generations by reason.",
            (*LABELS, "finished_reason"),
            registry=self.registry,
        )
        self._rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused for load, by reason.",
            (*LABELS, "reason"),
            registry=self.registry,
        )
        self._prompt_tokens_by_source = Counter(
            "vllm:prompt_tokens_by_source",
            "Prompt tokens by where their keys and values came from.",
            (*LABELS, "source"),
            registry=self.registry,
        )
        self._tool_parses = Counter(
            "vllm:tool_call_parser_invocations",
            "Answers that were searched for tool calls.",
            (*LABELS, "mode", "outcome", "request_type"),
            registry=self.registry,
        )
        self._http = Histogram(
            "http_request_duration_seconds",
            "Duration of HTTP exchanges, streams included.",
            ("method", "handler", "status"),
            registry=self.registry,
            buckets=buckets.HTTP_LATENCY,
        )
        self._http_total = Counter(
            "http_requests",
            "HTTP exchanges.",
            ("method", "handler", "status"),
            registry=self.registry,
        )

    def _make_latencies(self) -> None:
        fine, coarse = buckets.LATENCY, buckets.REQUEST_LATENCY
        make = self._histogram
        self.time_to_first_token = make(
            "time_to_first_token_seconds", "From arrival to the first token.", fine
        )
        self.inter_token_latency = make(
            "inter_token_latency_seconds", "Between two updates of one choice.", fine
        )
        self.time_per_output_token = make(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first, by request.",
            fine,
        )
        self.e2e_latency = make(
            "e2e_request_latency_seconds", "From arrival to the last token.", coarse
        )
        self.queue_time = make(
            "request_queue_time_seconds", "From arrival to the first scheduled step.", coarse
        )
        self.prefill_time = make(
            "request_prefill_time_seconds", "From the first step to the first token.", coarse
        )
        self.decode_time = make(
            "request_decode_time_seconds", "From the first token to the last.", coarse
        )
        self.inference_time = make(
            "request_inference_time_seconds", "From the first step to the last token.", coarse
        )

    def _make_sizes(self) -> None:
        make, tokens = self._histogram, buckets.TOKENS
        self.request_prompt_tokens = make("request_prompt_tokens", "Prompt length.", tokens)
        self.request_generation_tokens = make(
            "request_generation_tokens", "Generated tokens by choice.", tokens
        )
        self.request_params_max_tokens = make(
            "request_params_max_tokens", "The max_tokens of requests that gave one.", tokens
        )
        self.request_num_preemptions = make(
            "request_num_preemptions", "How often a choice was preempted.", buckets.PREEMPTIONS
        )
        self.request_max_num_generation_tokens = make(
            "request_max_num_generation_tokens",
            "Generated tokens of a prompt's longest choice.",
            tokens,
        )
        self.request_prefill_kv_computed_tokens = make(
            "request_prefill_kv_computed_tokens", "Prompt tokens not found in the cache.", tokens
        )
        self.request_params_n = make("request_params_n", "The n of requests.", buckets.CHOICES)

    def request(
        self, num_prompt_tokens: int, params: SamplingParams, now: Callable[[], float]
    ) -> RequestObservation:
        """Observe one prompt's generation: enter, `update` with all updates, exit."""
        return RequestObservation(self, num_prompt_tokens, params, now)

    def pooling(
        self, prompt_lengths: Sequence[int], now: Callable[[], float]
    ) -> PoolingObservation:
        """Observe one request for vectors: enter, `finish` with all of them, exit."""
        return PoolingObservation(self, prompt_lengths, now)

    def observe_finish(self, reason: str) -> None:
        """One choice has ended: "stop", "length", "abort" or "error"."""
        self._success_of(*self._labels, reason).inc()

    def observe_rejection(self, reason: str) -> None:
        """A request was refused for load."""
        self._rejections.labels(*self._labels, reason).inc()

    def observe_sources(self, computed: int, cached: int) -> None:
        """Where the tokens of one prompt came from."""
        for source, number in (("local_compute", computed), ("local_cache_hit", cached)):
            self._sources_of(*self._labels, source).inc(number)

    def observe_tool_parse(self, request_type: str, *, streaming: bool, called: bool) -> None:
        """A choice of a request with tools has ended."""
        mode = "streaming" if streaming else "non_streaming"
        outcome = "tool_call" if called else "no_tool_call"
        self._tool_parses.labels(*self._labels, mode, outcome, request_type).inc()

    def observe_http(self, method: str, handler: str, status: int, seconds: float) -> None:
        """An HTTP exchange has ended; `handler` is the route, never the raw path."""
        self._http_total_of(method, handler, str(status)).inc()
        self._http_of(method, handler, str(status)).observe(seconds)

    def snapshot(self) -> list[Family]:
        """The counts of this process alone, without the engine's."""
        engines = {metric.name for metric in self._engine.collect()}
        own = (metric for metric in self.registry.collect() if metric.name not in engines)
        return snapshot(own)

    def render(self, accept: str, others: Sequence[Sequence[Family]] = ()) -> tuple[bytes, str]:
        """The scrape in the format that the Accept header prefers, and its content type.

        `others` are the snapshots of further processes, which are added.
        """
        encode, content_type = choose_encoder(accept)
        if not others:
            return encode(self.registry), content_type
        merged: Any = Merged(self.registry.collect(), others)
        return encode(merged), content_type


class _ChoiceTimes:
    """When a choice had its first and its last token, and how many."""

    __slots__ = ("first", "last", "num_tokens", "reason")

    def __init__(self) -> None:
        self.first: float | None = None
        self.last = 0.0
        self.num_tokens = 0
        self.reason = ""  # why it ended


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """Seconds; None for what has not happened. `queue` ends with the first scheduled step."""

    queue: float | None
    first_token: float | None
    prefill: float | None
    decode: float | None
    inference: float | None
    total: float | None


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(0.0, end - start)


class RequestObservation:
    """The life of one prompt's generation; choices that have not ended at exit were aborted."""

    def __init__(
        self,
        metrics: Metrics,
        num_prompt_tokens: int,
        params: SamplingParams,
        now: Callable[[], float],
    ) -> None:
        self._metrics = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self.params = params
        self._now = now
        self._arrival = now()
        self._scheduled: float | None = None
        self._first_token: float | None = None
        self._num_cached = 0
        self._ended: float | None = None
        self._choices = [_ChoiceTimes() for _ in range(params.n)]

    @property
    def finish_reasons(self) -> list[str]:
        """Why each choice ended; empty texts while they go on."""
        return [choice.reason for choice in self._choices]

    @property
    def times(self) -> RequestTimes:
        """Where the time went, so far."""
        scheduled, first = self._scheduled, self._first_token
        last = max((choice.last for choice in self._choices), default=0.0) or None
        return RequestTimes(
            queue=_between(self._arrival, scheduled),
            first_token=_between(self._arrival, first),
            prefill=_between(scheduled, first),
            decode=_between(first, last),
            inference=_between(scheduled, last),
            total=_between(self._arrival, self._ended),
        )

    def __enter__(self) -> Self:
        metrics = self._metrics
        metrics.prompt_tokens.inc(self._num_prompt_tokens)
        metrics.request_prompt_tokens.observe(self._num_prompt_tokens)
        metrics.request_params_n.observe(self.params.n)
        if self.params.max_tokens is not None:
            metrics.request_params_max_tokens.observe(self.params.max_tokens)
        return self

    def update(self, update: ChoiceUpdate) -> None:
        """Count an update, as it came from the engine client."""
        now = self._now()
        if self._scheduled is None and update.scheduled_time is not None:
            self._scheduled = update.scheduled_time
            self._metrics.queue_time.observe(max(0.0, self._scheduled - self._arrival))
        if update.num_cached_tokens > self._num_cached:
            self._metrics.prompt_tokens_cached.inc(update.num_cached_tokens - self._num_cached)
            self._num_cached = update.num_cached_tokens
        if update.token_ids:
            self._count_tokens(update, now)
        if update.finish_reason is not None:
            self._finish_choice(update, now)

    def _count_tokens(self, update: ChoiceUpdate, now: float) -> None:
        choice = self._choices[update.index]
        if self._first_token is None:
            self._first_token = now
            self._metrics.time_to_first_token.observe(now - self._arrival)
            if self._scheduled is not None:
                self._metrics.prefill_time.observe(max(0.0, now - self._scheduled))
        if choice.first is None:
            choice.first = now
        else:
            self._metrics.inter_token_latency.observe(now - choice.last)
        choice.last = now
        choice.num_tokens += len(update.token_ids)
        self._metrics.generation_tokens.inc(len(update.token_ids))

    def _finish_choice(self, update: ChoiceUpdate, now: float) -> None:
        choice, metrics = self._choices[update.index], self._metrics
        choice.reason = str(update.finish_reason)
        metrics.observe_finish(choice.reason)
        metrics.request_generation_tokens.observe(choice.num_tokens)
        metrics.request_num_preemptions.observe(update.num_preemptions)
        metrics.e2e_latency.observe(now - self._arrival)
        if self._scheduled is not None:
            metrics.inference_time.observe(max(0.0, now - self._scheduled))
        if choice.first is not None:
            metrics.decode_time.observe(choice.last - choice.first)
            if choice.num_tokens > 1:
                per_token = (choice.last - choice.first) / (choice.num_tokens - 1)
                metrics.time_per_output_token.observe(per_token)

    def _finish_prompt(self) -> None:
        metrics, computed = self._metrics, max(0, self._num_prompt_tokens - self._num_cached)
        metrics.observe_sources(computed, self._num_cached)
        metrics.request_prefill_kv_computed_tokens.observe(computed)
        longest = max(choice.num_tokens for choice in self._choices)
        metrics.request_max_num_generation_tokens.observe(longest)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = self._now()
        if self._scheduled is not None:
            self._finish_prompt()
        reason = "error" if isinstance(error, Exception) else "abort"
        for choice in self._choices:
            if not choice.reason:
                choice.reason = reason
                self._metrics.observe_finish(reason)


class PoolingObservation:
    """The life of the prompts of one request for vectors, which end together."""

    def __init__(
        self, metrics: Metrics, prompt_lengths: Sequence[int], now: Callable[[], float]
    ) -> None:
        self._metrics = metrics
        self._prompt_lengths = prompt_lengths
        self._now = now
        self._arrival = now()
        self._finished = False

    def __enter__(self) -> Self:
        for length in self._prompt_lengths:
            self._metrics.prompt_tokens.inc(length)
            self._metrics.request_prompt_tokens.observe(length)
        return self

    def finish(self, outputs: Sequence[PooledOutput]) -> None:
        """All vectors are there."""
        metrics, now = self._metrics, self._now()
        self._finished = True
        for output in outputs:
            metrics.observe_finish("stop")
            metrics.prompt_tokens_cached.inc(output.num_cached_tokens)
            metrics.e2e_latency.observe(now - self._arrival)
            if output.scheduled_time is not None:
                started = max(self._arrival, output.scheduled_time)
                metrics.queue_time.observe(started - self._arrival)
                metrics.inference_time.observe(max(0.0, now - started))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._finished:
            failed = isinstance(error, Exception) and not isinstance(error, RequestAborted)
            reason = "error" if failed else "abort"
            for _ in self._prompt_lengths:
                self._metrics.observe_finish(reason)

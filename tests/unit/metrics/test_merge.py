"""Numbers of several processes add up; states stay those of the first."""

from __future__ import annotations

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from api.fakes import FakeClient
from pagemill.engine.messages import EngineStats
from pagemill.metrics.cheap import CheapCounter, CheapHistogram
from pagemill.metrics.merge import Family, Merged, add, snapshot
from pagemill.metrics.metrics import Metrics


def registry(count: float, *observed: float, state: float = 1.0) -> CollectorRegistry:
    made = CollectorRegistry()
    Counter("events", "Events.", ("kind",), registry=made).labels("a").inc(count)
    histogram = Histogram("seconds", "Seconds.", registry=made, buckets=(1.0, 2.0))
    for value in observed:
        histogram.observe(value)
    Gauge("state", "State.", registry=made).set(state)
    return made


def values(source: object) -> dict[str, float]:
    families = text_string_to_metric_families(generate_latest(source).decode())  # type: ignore[arg-type]
    return {
        sample.name + str(sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_sums_equal_one_process_that_saw_everything() -> None:
    others = [
        snapshot(registry(2, 0.5, 1.5, state=7).collect()),
        snapshot(registry(3, 9).collect()),
    ]
    sent = [msgspec.msgpack.decode(msgspec.msgpack.encode(o), type=list[Family]) for o in others]
    merged = Merged(registry(1, 0.1).collect(), sent)
    assert values(merged) == values(registry(6, 0.1, 0.5, 1.5, 9))
    both = add(others[0], others[1])
    assert values(Merged(registry(1, 0.1).collect(), [both])) == values(merged)
    assert add([], others[0]) == others[0]


def test_labels_that_only_others_have() -> None:
    other = CollectorRegistry()
    Counter("events", "Events.", ("kind",), registry=other).labels("b").inc(4)
    found = values(Merged(registry(1).collect(), [snapshot(other.collect())]))
    assert found["events_total[('kind', 'a')]"] == 1
    assert found["events_total[('kind', 'b')]"] == 4


def test_cheap_kinds_look_like_the_librarys() -> None:
    cheap, usual = CollectorRegistry(), registry(3, 0.5, 1.0, 1.5, 99)
    events = CheapCounter("events", "Events.", {"kind": "a"})
    seconds = CheapHistogram("seconds", "Seconds.", {}, (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 99):
        seconds.observe(value)
    events.inc()
    events.inc(2)
    cheap.register(events)
    cheap.register(seconds)
    Gauge("state", "State.", registry=cheap).set(1)
    assert values(cheap) == values(usual)


def test_the_engines_numbers_count_once() -> None:
    client = FakeClient(stats=EngineStats(num_running=3, num_preemptions=5))
    first, second = Metrics("m", client), Metrics("m", client)
    for metrics in (first, second):
        metrics.generation_tokens.inc(10)
    text = first.render("text/plain", [second.snapshot()])[0].decode()
    labels = '{engine="0",model_name="m"}'
    for line in (
        f"vllm:generation_tokens_total{labels} 20.0",
        'vllm:num_preemptions_total{model_name="m",engine="0"} 5.0',
        'vllm:num_requests_running{model_name="m",engine="0"} 3.0',
    ):
        name = line.partition("{")[0]
        found = [own for own in text.splitlines() if own.startswith(name + "{")]
        assert [own.rpartition(" ")[2] for own in found] == [line.rpartition(" ")[2]]

"""The metrics of several processes as those of one: counts add up, states are the first one's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
from prometheus_client.core import Metric

# gauges of a process of which the sum says something
_SUMMED_GAUGES = frozenset(
    {"process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds"}
)


class Count(msgspec.Struct, array_like=True, frozen=True):
    """One sample: its name, its labels in the order of their names, and its value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float

    @property
    def key(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        return self.name, self.labels


class Family(msgspec.Struct, array_like=True, frozen=True):
    """One metric with its samples."""

    name: str
    kind: str  # Prometheus's type
    text: str
    counts: list[Count]


def snapshot(metrics: Iterable[Metric]) -> list[Family]:
    """The metrics of this process that add up with those of others, ready to be sent."""
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            [
                Count(sample.name, tuple(sorted(sample.labels.items())), float(sample.value))
                for sample in metric.samples
                if not sample.name.endswith("_created")  # a time, which does not add up
            ],
        )
        for metric in metrics
        if metric.type in ("counter", "histogram") or metric.name in _SUMMED_GAUGES
    ]


class Merged:
    """This process's metrics with the others' counts added. May stand for a registry."""

    def __init__(self, own: Iterable[Metric], others: Sequence[Sequence[Family]]) -> None:
        self._own = list(own)
        self._others = others

    def collect(self) -> Iterator[Metric]:
        """All families, each once."""
        by_name: dict[str, list[Family]] = {}
        for families in self._others:
            for family in families:
                by_name.setdefault(family.name, []).append(family)
        for metric in self._own:
            yield _sum(metric, by_name.pop(metric.name, []))
        for rest in by_name.values():
            yield _sum(Metric(rest[0].name, rest[0].text, rest[0].kind), rest)


def add(first: Sequence[Family], second: Sequence[Family]) -> list[Family]:
    """Two snapshots as one."""
    made = [Metric(family.name, family.text, family.kind) for family in first]
    for metric, family in zip(made, first, strict=True):
        for count in family.counts:
            metric.add_sample(count.name, dict(count.labels), count.value)
    return snapshot(Merged(made, [second]).collect())


def _sum(metric: Metric, others: Sequence[Family]) -> Metric:
    if not others:
        return metric
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in metric.samples:
        values[sample.name, tuple(sorted(sample.labels.items()))] = float(sample.value)
    for family in others:
        for count in family.counts:
            values[count.key] = values.get(count.key, 0.0) + count.value
    total = Metric(metric.name, metric.documentation, metric.type)
    for (name, labels), value in values.items():
        total.add_sample(name, dict(labels), value)
    return total

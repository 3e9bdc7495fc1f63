"""A counter and a histogram for what happens with every token: no locks, no labels to look up.

Only for the thread of the event loop; a scrape reads on the same loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class CheapCounter(Collector):
    """A number that only grows, with fixed labels."""

    def __init__(self, name: str, text: str, labels: Mapping[str, str]) -> None:
        self._name, self._text = name, text
        self._labels = dict(labels)
        self._value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount`."""
        self._value += amount

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), self._value)
        yield family


class CheapHistogram(Collector):
    """Counts of values by upper bound, with fixed labels."""

    def __init__(
        self, name: str, text: str, labels: Mapping[str, str], bounds: Sequence[float]
    ) -> None:
        self._name, self._text = name, text
        self._labels = dict(labels)
        self._bounds = [float(bound) for bound in bounds]
        self._counts = [0] * (len(bounds) + 1)  # the last one is above all bounds
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=list(self._labels))
        buckets, total = [], 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric(list(self._labels.values()), buckets, self._sum)
        yield family

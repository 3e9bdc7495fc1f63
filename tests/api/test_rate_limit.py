"""Requests and tokens per key and minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagemill.api.errors import TooManyRequests
from pagemill.api.rate_limit import KeyBuckets, RateLimits, as_duration
from pagemill.api.shared_cells import SharedCells


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def waits(buckets: KeyBuckets, *keys: str) -> list[int]:
    """The seconds that each request is told to wait, 0 when it is let in."""
    found = []
    for key in keys:
        try:
            buckets.take(key)
        except TooManyRequests as refused:
            found.append(refused.retry_after)
        else:
            found.append(0)
    return found


def test_requests_per_key() -> None:
    time = Time()
    buckets = KeyBuckets(RateLimits(requests=2), ["a", "b"], time)
    assert waits(buckets, "a", "a", "a", "b") == [0, 0, 30, 0]
    time.now += 30
    assert waits(buckets, "a", "a") == [0, 30]
    time.now += 1000
    assert waits(buckets, "a", "a", "a", "-") == [0, 0, 30, 0]


def test_tokens_beyond_the_bucket_must_flow_back() -> None:
    time = Time()
    buckets = KeyBuckets(RateLimits(tokens=60), ["a"], time)
    assert waits(buckets, "a", "a") == [0, 0]
    buckets.spend("a", 100)
    assert waits(buckets, "a") == [41]  # 40 too many, and one to begin with
    time.now += 40
    assert waits(buckets, "a") == [1]
    time.now += 1
    assert waits(buckets, "a") == [0]


def test_refused_requests_cost_nothing() -> None:
    time = Time()
    buckets = KeyBuckets(RateLimits(requests=60, tokens=60), [], time)
    buckets.take("-")
    buckets.spend("-", 120)
    for _ in range(100):
        assert waits(buckets, "-") == [61]
    assert buckets.headers("-")["x-ratelimit-remaining-requests"] == "59"


def test_headers_say_what_is_left() -> None:
    time = Time()
    buckets = KeyBuckets(RateLimits(requests=60, tokens=6000), ["a"], time)
    buckets.take("a")
    buckets.spend("a", 250)
    assert buckets.headers("a") == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5750",
        "x-ratelimit-reset-tokens": "3s",
    }


def test_buckets_in_shared_memory_are_one(tmp_path: Path) -> None:
    time = Time()
    shared = [SharedCells(tmp_path / "rates", KeyBuckets.size(2)) for _ in range(2)]
    first, second = (
        KeyBuckets(RateLimits(requests=2), ["a", "b"], time, cells=cells.numbers, lock=cells)
        for cells in shared
    )
    assert waits(first, "a") + waits(second, "a", "a", "b") == [0, 0, 30, 0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0123, "13ms"), (0.9991, "1000ms"), (1, "1s"), (59.2, "1m0s"), (90, "1m30s")],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert as_duration(seconds) == text

"""Histogram buckets: fine enough to tell a 2 ms step from a 5 ms step."""

from __future__ import annotations

# seconds; the reference dashboards' first inter-token bucket is 10 ms, which hides small models
LATENCY = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_LATENCY = (
    *(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0),
    *(20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
HTTP_LATENCY = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 128.0)
PREEMPTIONS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
TOKENS = (*(float(m * 10**e) for e in range(6) for m in (1, 2, 5)), 1_000_000.0)

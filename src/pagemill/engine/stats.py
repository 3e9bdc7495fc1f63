"""The engine's numbers for metrics and health."""

from __future__ import annotations

from dataclasses import dataclass

from pagemill.engine.messages import EngineStats
from pagemill.scheduler.scheduler import Scheduler


@dataclass(slots=True)
class StepCounters:
    """What the loop itself counts."""

    num_steps: int = 0
    step_tokens: int = 0  # of the last step


def read_stats(scheduler: Scheduler, steps: StepCounters, sleep_level: int) -> EngineStats:
    """A snapshot; constant time."""
    counters, retirement = scheduler.counters, scheduler.retirement
    return EngineStats(
        num_running=len(scheduler.slots),
        num_waiting=scheduler.num_waiting,
        kv_cache_usage=scheduler.cache.usage,
        num_preemptions=counters.num_preemptions,
        prefix_cache_queries=counters.prefix_cache_queries,
        prefix_cache_hits=counters.prefix_cache_hits,
        num_steps=steps.num_steps,
        step_tokens=steps.step_tokens,
        num_draft_tokens=retirement.num_draft_tokens,
        num_accepted_tokens=retirement.num_accepted_tokens,
        sleep_level=sleep_level,
    )

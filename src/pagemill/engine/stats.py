"""The engine's numbers for metrics and health."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from pagemill.engine.messages import STEP_SIZES, EngineStats
from pagemill.scheduler.scheduler import Scheduler


@dataclass(slots=True)
class StepCounters:
    """What the loop itself counts."""

    num_steps: int = 0
    step_tokens: int = 0  # of the last step
    tokens_computed: int = 0
    sizes: list[int] = field(default_factory=lambda: [0] * (len(STEP_SIZES) + 1))

    def count(self, num_tokens: int) -> None:
        """A step of so many tokens was launched."""
        self.num_steps += 1
        self.step_tokens = num_tokens
        self.tokens_computed += num_tokens
        self.sizes[bisect_left(STEP_SIZES, num_tokens)] += 1


def read_stats(scheduler: Scheduler, steps: StepCounters, sleep_level: int) -> EngineStats:
    """The numbers now; constant time. Its lists are the counters themselves, and go on."""
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
        num_deferred=scheduler.num_deferred,
        num_drafts=retirement.num_drafts,
        accepted_by_position=retirement.accepted_by_position,
        step_sizes=steps.sizes,
        tokens_computed=steps.tokens_computed,
    )

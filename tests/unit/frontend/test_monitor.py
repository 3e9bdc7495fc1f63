"""Health from signs of life, and how long a refused request should stay away."""

import pytest

from pagemill.engine.messages import EngineInfo, EngineStats, EngineStatus
from pagemill.errors import EngineDeadError, OverloadedError
from pagemill.frontend.monitor import EngineMonitor
from pagemill.frontend.queue_limit import QueueLimit


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_silence_counts_once_ready_and_may_end() -> None:
    clock = FakeClock()
    monitor = EngineMonitor(clock)
    clock.now += 60
    assert monitor.status.state == "loading"
    monitor.observe(EngineStatus("ready", info=EngineInfo(64, 8, 16, 2, 32)))
    clock.now += 7.9
    assert monitor.status.state == "ready"
    clock.now += 0.2
    assert monitor.status.state == "failed"
    assert "stuck: no sign of life for 8 seconds" in monitor.status.detail
    monitor.alive(EngineStats(num_running=3))
    assert monitor.status.state == "ready"
    assert monitor.stats.num_running == 3
    assert monitor.info.max_model_len == 64


def test_failure_is_final_and_keeps_its_first_cause() -> None:
    monitor = EngineMonitor(FakeClock())
    with pytest.raises(EngineDeadError, match="still loading"):
        _ = monitor.info
    monitor.observe(EngineStatus("failed", detail="out of memory"))
    monitor.fail("exited with code 1")
    monitor.observe(EngineStatus("ready"))
    assert monitor.status.detail == "out of memory"
    with pytest.raises(EngineDeadError, match="out of memory"):
        _ = monitor.info


def test_silence_of_a_sleeping_engine_is_no_fault() -> None:
    clock = FakeClock()
    monitor = EngineMonitor(clock, stuck_seconds=5)
    monitor.observe(EngineStatus("ready", stats=EngineStats(sleep_level=2)))
    clock.now += 60  # it loads the weights again
    assert monitor.status.state == "ready"
    monitor.alive(EngineStats())
    clock.now += 6
    assert monitor.status.state == "failed"


def test_retry_after_follows_the_pace() -> None:
    clock = FakeClock()
    limit = QueueLimit(4, clock)
    limit.check(num_new=2, num_open=4, max_running=2)
    with pytest.raises(OverloadedError) as caught:
        limit.check(num_new=3, num_open=4, max_running=2)
    assert caught.value.retry_after == 1
    for _ in range(60):
        limit.finished()
        clock.now += 5
    with pytest.raises(OverloadedError) as caught:
        limit.check(num_new=3, num_open=5, max_running=2)
    assert caught.value.retry_after == 10


def test_waiting_prompts_are_bounded_by_tokens_too() -> None:
    limit = QueueLimit(4, FakeClock(), max_tokens=100)
    limit.queue(500)  # alone, a long one is taken
    with pytest.raises(OverloadedError, match="500 tokens"):
        limit.queue(1)
    limit.started(500)
    limit.queue(60)
    limit.queue(40)
    with pytest.raises(OverloadedError):
        limit.queue(1)
    limit.started(60)
    limit.queue(60)

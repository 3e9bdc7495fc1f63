"""An engine that sleeps: refused, drained or aborted requests, and the executor's part."""

from __future__ import annotations

import numpy as np
import pytest

from engine.fake_device import FakeExecutor
from pagemill.config.engine import EngineConfig
from pagemill.engine.engine import Engine
from pagemill.engine.messages import AddRequest
from pagemill.errors import ModelLoadError, PageMillError
from pagemill.kvcache.hashing import hash_blocks
from pagemill.params import SamplingParams


class Sleeper(FakeExecutor):
    """Remembers the calls; `broken` fails the waking."""

    broken = False

    def control(self, method: str, args: list[object]) -> None:
        if self.broken and method == "wake_up":
            raise ModelLoadError("no memory")
        self.calls = [*getattr(self, "calls", []), (method, *args)]


def make_engine() -> tuple[Engine, Sleeper]:
    executor = Sleeper()
    config = EngineConfig(
        model="", served_model_names=("m",), device="cpu", dtype="float32", max_model_len=256
    )
    return Engine(config, executor), executor


def message(name: str, max_tokens: int = 6) -> AddRequest:
    tokens = np.arange(9, dtype=np.int32)
    hashes = hash_blocks(tokens, 4, b"")
    return AddRequest(name, 0, tokens.tobytes(), hashes, SamplingParams(max_tokens=max_tokens))


def run(engine: Engine) -> dict[str, str | None]:
    """How each request ended."""
    ends: dict[str, str | None] = {}
    for _ in range(300):
        if not engine.has_work():
            return ends
        ends |= {d.request_id: d.finish_reason for d in engine.step() if d.finish_reason}
    raise AssertionError("the engine does not come to an end")


def test_running_requests_end_while_new_ones_are_refused() -> None:
    engine, executor = make_engine()
    engine.add_request(message("a"))
    engine.step()
    assert engine.control("prepare_sleep", [1]) == 1
    assert engine.stats().sleep_level == 1
    engine.add_request(message("b"))
    assert run(engine) == {"a": "length", "b": "error"}
    assert engine.control("prepare_sleep", [1]) == 0
    assert not hasattr(executor, "calls")
    engine.control("sleep", [1])
    assert executor.calls == [("sleep", 1)]
    assert not engine.has_work()


def test_sleep_aborts_what_still_runs_and_forgets_the_cache() -> None:
    engine, executor = make_engine()
    engine.add_request(message("warm"))
    run(engine)
    engine.add_request(message("a", 200))
    engine.add_request(message("b", 200))
    for _ in range(3):
        engine.step()
    engine.control("sleep", [2])
    assert run(engine) == {"a": "abort", "b": "abort"}
    assert engine.scheduler.cache.usage == 0
    engine.control("wake_up", [])
    assert executor.calls == [("sleep", 2), ("wake_up",)]
    hits = engine.stats().prefix_cache_hits
    engine.add_request(message("c"))
    assert run(engine) == {"c": "length"}
    assert engine.stats().prefix_cache_hits == hits


def test_waking_from_a_sleep_that_was_only_prepared_touches_no_memory() -> None:
    engine, executor = make_engine()
    engine.control("prepare_sleep", [1])
    engine.control("wake_up", [])
    assert engine.stats().sleep_level == 0
    assert not hasattr(executor, "calls")
    engine.add_request(message("a"))
    assert run(engine) == {"a": "length"}


def test_failed_waking_leaves_it_asleep() -> None:
    engine, executor = make_engine()
    engine.control("sleep", [2])
    executor.broken = True
    with pytest.raises(ModelLoadError):
        engine.control("wake_up", [])
    assert engine.stats().sleep_level == 2
    executor.broken = False
    engine.control("wake_up", [])
    assert engine.stats().sleep_level == 0


@pytest.mark.parametrize("level", [0, 3, -1])
def test_there_are_two_levels(level: int) -> None:
    engine, _ = make_engine()
    for method in ("sleep", "prepare_sleep"):
        with pytest.raises(PageMillError, match="levels 1 and 2"):
            engine.control(method, [level])
    assert engine.stats().sleep_level == 0

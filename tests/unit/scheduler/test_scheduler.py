"""Scheduling decisions that the random trials do not pin down."""

from __future__ import annotations

import pytest

from pagemill.errors import ContextTooLong, InvalidParams, OverloadedError
from pagemill.scheduler.scheduler import Scheduler
from unit.scheduler.scheduling import make_message, make_scheduler, rows_of, sampled


def _run_step(scheduler: Scheduler) -> dict[str, int]:
    """Schedule and retire one step."""
    step = scheduler.schedule()
    if step is not None:
        scheduler.update(step, sampled(step))
    return rows_of(step)


def test_decoding_and_prompts_share_one_step_and_one_budget() -> None:
    scheduler = make_scheduler(budget=16)
    scheduler.add(make_message("a", 8))
    assert _run_step(scheduler) == {"a": 8}
    scheduler.add(make_message("b", 40, first_token=100))
    assert _run_step(scheduler) == {"a": 1, "b": 15}
    assert _run_step(scheduler) == {"a": 1, "b": 15}
    assert _run_step(scheduler) == {"a": 1, "b": 10}
    assert _run_step(scheduler) == {"a": 1, "b": 1}


def test_identical_prompts_that_arrive_together_share_their_blocks() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_message("a", 14))
    scheduler.add(make_message("b", 14))
    step = scheduler.schedule()
    assert rows_of(step) == {"a": 14, "b": 2}
    assert scheduler.counters.prefix_cache_hits == 12
    assert scheduler.cache.usage == pytest.approx(5 / 64)


def test_prompt_logprobs_compute_the_whole_prompt() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_message("a", 14))
    scheduler.add(make_message("b", 14, prompt_logprobs=2))
    step = scheduler.schedule()
    assert rows_of(step) == {"a": 14, "b": 14}
    assert step is not None and step.batch.prompt_logprobs is not None
    assert step.batch.prompt_logprobs.tolist() == [-1, 2]


def test_a_long_prompt_does_not_starve_short_ones() -> None:
    scheduler = make_scheduler(budget=64, prefill_share=0.5, num_blocks=3000, max_model_len=10_000)
    scheduler.add(make_message("long", 6000))
    scheduler.add(make_message("longer", 5000, first_token=7000))
    for index in range(5):
        scheduler.add(make_message(f"short{index}", 20, first_token=20_000 + 100 * index))
    waits = {}
    for step in range(12):
        for name in _run_step(scheduler):
            waits.setdefault(name, step)
    assert max(waits[f"short{index}"] for index in range(5)) < 5
    assert waits["long"] == 0


def test_a_long_prompt_alone_takes_the_whole_budget() -> None:
    scheduler = make_scheduler(budget=64, prefill_share=0.25)
    scheduler.add(make_message("long", 200))
    assert _run_step(scheduler) == {"long": 64}


def test_priority_decides_who_runs_first() -> None:
    scheduler = make_scheduler(max_num_seqs=1, scheduling_policy="priority")
    scheduler.add(make_message("low", priority=5))
    scheduler.add(make_message("high", priority=1))
    assert list(_run_step(scheduler)) == ["high"]


def test_without_the_policy_priority_means_nothing() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.add(make_message("first", priority=5))
    scheduler.add(make_message("second", priority=1))
    assert list(_run_step(scheduler)) == ["first"]


def test_the_least_important_and_latest_is_preempted_and_comes_back_first() -> None:
    scheduler = make_scheduler(num_blocks=8, scheduling_policy="priority", prefix_caching=False)
    scheduler.add(make_message("low", 8, priority=2))
    scheduler.add(make_message("early", 8, first_token=50, priority=1))
    scheduler.add(make_message("late", 8, first_token=70, priority=1))
    assert set(_run_step(scheduler)) == {"early", "late", "low"}
    assert set(_run_step(scheduler)) == {"early", "late"}  # three blocks wanted, one was free
    assert scheduler.counters.num_preemptions == 1
    scheduler.add(make_message("new", 4, first_token=90, priority=2))
    scheduler.abort(["late"])
    assert list(_run_step(scheduler)) == ["early", "low", "new"]


def test_a_request_waits_until_its_whole_prompt_fits_beside_the_others() -> None:
    scheduler = make_scheduler(num_blocks=11, budget=8)
    scheduler.add(make_message("a", 24))
    scheduler.add(make_message("b", 20, first_token=100))
    for _ in range(4):
        assert "b" not in _run_step(scheduler)
    scheduler.abort(["a"])
    assert _run_step(scheduler) == {"b": 8}
    assert scheduler.counters.num_preemptions == 0


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        (make_message("x", 0), InvalidParams, "at least one token"),
        (make_message("x", 256), ContextTooLong, "context length of 256"),
        (make_message("x", 100), ContextTooLong, "the KV cache holds 80"),
        (make_message("taken"), InvalidParams, "under way already"),
        (make_message("x", structured_outputs={"regex": "a"}), InvalidParams, "structured"),
    ],
)
def test_what_can_never_be_served_is_refused(
    message: object, error: type[Exception], text: str
) -> None:
    scheduler = make_scheduler(num_blocks=21)
    scheduler.add(make_message("taken"))
    with pytest.raises(error, match=text):
        scheduler.add(message)  # type: ignore[arg-type]
    assert scheduler.num_waiting == 1


def test_a_generation_ends_where_context_or_cache_ends() -> None:
    scheduler = make_scheduler(num_blocks=6)
    scheduler.add(make_message("a", 15, max_tokens=100))
    steps = 0
    while _run_step(scheduler):
        steps += 1
    assert steps == 5 and not scheduler.has_requests


def test_a_full_queue_refuses() -> None:
    scheduler = make_scheduler(max_num_queued_reqs=2)
    scheduler.add(make_message("a"))
    scheduler.add(make_message("b"))
    with pytest.raises(OverloadedError, match="queue is full"):
        scheduler.add(make_message("c"))
    scheduler.schedule()
    scheduler.add(make_message("c"))


def test_requests_end_when_their_time_is_up_wherever_they_are() -> None:
    now = 100.0
    scheduler = make_scheduler(max_num_seqs=1, clock=lambda: now)
    scheduler.add(make_message("runs", timeout=2.0))
    scheduler.add(make_message("waits", timeout=1.0))
    scheduler.add(make_message("patient"))
    _run_step(scheduler)
    assert scheduler.end_overdue() == []
    now = 101.0
    [delta] = scheduler.end_overdue()
    assert (delta.request_id, delta.finish_reason) == ("waits", "abort")
    assert delta.error == "the request timed out after 1 seconds"
    now = 103.0
    assert [delta.request_id for delta in scheduler.end_overdue()] == ["runs"]
    assert list(_run_step(scheduler)) == ["patient"]


def test_the_first_delta_tells_what_was_cached_and_when_it_ran() -> None:
    scheduler = make_scheduler(clock=lambda: 7.0)
    scheduler.add(make_message("a", 14))
    scheduler.add(make_message("b", 14))
    step = scheduler.schedule()
    assert step is not None
    first, second = scheduler.update(step, sampled(step))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 12)
    assert first.scheduled_time == 7.0
    step = scheduler.schedule()
    assert step is not None
    assert scheduler.update(step, sampled(step))[0].num_cached_tokens is None


@pytest.mark.parametrize(
    ("params", "finish"),
    [
        ({"eos_token_ids": [900]}, ("stop", None)),
        ({"stop_token_ids": [900]}, ("stop", 900)),
        ({"eos_token_ids": [900], "stop_token_ids": [900]}, ("stop", None)),
        ({"eos_token_ids": [900], "ignore_eos": True}, (None, None)),
        (
            {"eos_token_ids": [900], "ignore_eos": True, "stop_token_ids": [900]},
            ("stop", 900),
        ),
        ({"eos_token_ids": [900], "min_tokens": 2}, (None, None)),
        ({"stop_token_ids": [*range(100, 120), 900]}, ("stop", 900)),
        ({"max_tokens": 1}, ("length", None)),
        ({"max_tokens": 1, "stop_token_ids": [900]}, ("stop", 900)),
    ],
)
def test_what_ends_a_generation(
    params: dict[str, object], finish: tuple[str | None, int | None]
) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_message("a", **params))
    step = scheduler.schedule()
    assert step is not None
    [delta] = scheduler.update(step, sampled(step))
    assert (delta.finish_reason, delta.stop_reason) == finish
    assert len(delta.token_ids) == 4


def test_seeds_are_unsigned_and_drawn_when_none_is_given() -> None:
    scheduler = make_scheduler()
    for name, seed in (("a", -1), ("b", None), ("c", None)):
        scheduler.add(make_message(name, seed=seed))
    step = scheduler.schedule()
    assert step is not None
    given, *drawn = (admission.seed for admission in step.batch.admitted)
    assert given == 2**64 - 1
    assert len(set(drawn)) == 2 and all(0 <= seed < 2**64 for seed in drawn)

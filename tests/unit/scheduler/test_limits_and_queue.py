"""The limits and the waiting queue by themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pagemill.scheduler.limits import PrefillShare, SeqBudget, TokenBudget, WholePrompts
from pagemill.scheduler.queue import WaitingQueue
from pagemill.scheduler.request import Status
from unit.scheduler.scheduling import make_request


def test_the_token_budget_is_handed_out_once_a_step() -> None:
    budget, request = TokenBudget(10), make_request()
    assert budget.cap(request, 6) == 6
    budget.take(request, 6)
    assert budget.cap(request, 6) == 4
    budget.begin_step()
    assert budget.cap(request, 60) == 10


def test_without_a_free_slot_only_running_requests_go_on() -> None:
    waiting, running = make_request(0), make_request(1)
    running.slot = 3
    budget = SeqBudget(lambda: 0)
    assert (budget.cap(waiting, 5), budget.cap(running, 5)) == (0, 5)
    assert SeqBudget(lambda: 1).cap(waiting, 5) == 5


def test_long_prompts_share_a_part_and_short_ones_pass() -> None:
    share = PrefillShare(0.5, 100, contended=lambda: True)
    long, other, short = make_request(0), make_request(1), make_request(2)
    assert share.cap(long, 1000) == 50
    share.take(long, 50)
    assert share.cap(other, 1000) == 0
    assert share.cap(short, 40) == 40
    share.take(short, 40)
    share.begin_step()
    assert share.cap(other, 1000) == 50


def test_a_long_prompt_that_is_alone_takes_everything() -> None:
    share = PrefillShare(0.5, 100, contended=lambda: False)
    assert share.cap(make_request(), 1000) == 1000


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30))
def test_the_queue_gives_the_most_important_first(entries: list[tuple[int, bool]]) -> None:
    queue = WaitingQueue()
    requests = [make_request(i, priority) for i, (priority, _) in enumerate(entries)]
    for request in requests:
        queue.push(request)
    for request, (_, gone) in zip(requests, entries, strict=True):
        if gone:
            request.status = Status.FINISHED
            queue.discard(request)
    left = [r for r in requests if r.status is not Status.FINISHED]
    assert len(queue) == len(left)
    taken = [queue.pop() for _ in range(len(queue))]
    assert taken == sorted(left, key=lambda request: request.sort_key)


def test_who_was_preempted_comes_before_later_arrivals() -> None:
    queue = WaitingQueue()
    first, second, third = (make_request(i) for i in range(3))
    for request in (first, second, third):
        queue.push(request)
    preempted = queue.pop()
    queue.push(preempted)
    assert queue.pop() is first


def test_a_whole_prompt_is_computed_at_once_or_not_now() -> None:
    whole, request = WholePrompts(), make_request(length=8)
    assert whole.cap(request, 8) == 8
    assert whole.cap(request, 7) == 0

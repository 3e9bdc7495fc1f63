"""Who computes what in the next step. There are no phases: a request has tokens left to compute."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from pagemill.config.cache import CacheLayout, step_tokens
from pagemill.config.engine import EngineConfig
from pagemill.engine.messages import AddRequest, EngineInfo, RequestDelta
from pagemill.errors import GrammarError, InvalidParams, OverloadedError
from pagemill.kvcache.manager import CachedPrefix, KVCacheManager
from pagemill.scheduler.batch import Admission, Int32
from pagemill.scheduler.intake import Intake
from pagemill.scheduler.limits import Limit, PrefillShare, SeqBudget, TokenBudget, WholePrompts
from pagemill.scheduler.plan import DecodeRows, PrefillRow, ScheduledStep, StepPlan
from pagemill.scheduler.queue import WaitingQueue
from pagemill.scheduler.request import Grammar, Request, Status
from pagemill.scheduler.result import StepResult
from pagemill.scheduler.retire import Retirement
from pagemill.scheduler.slots import Index, Slots

MAX_SKIPPED = 16  # waiting requests that others may overtake in a step because a limit holds them
HEADROOM_SHARE = 64  # one block in so many stays free at an admission, for those that run


@dataclass(slots=True)
class Counters:
    """What has happened since the start; they only grow."""

    num_preemptions: int = 0
    prefix_cache_queries: int = 0  # tokens
    prefix_cache_hits: int = 0  # tokens


class Scheduler:
    """Hands out slots, blocks and the token budget.

    At most one step may be in flight when `schedule` is called, and its `update` must come before
    the next `schedule`.
    """

    def __init__(
        self,
        config: EngineConfig,
        info: EngineInfo,
        *,
        grammar: Grammar | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        layout = CacheLayout(
            info.block_size, info.num_blocks, info.cache_groups, step_tokens(config)
        )
        key = bytes.fromhex(config.hash_key)
        self.cache = KVCacheManager(layout, prefix_caching=config.prefix_caching, key=key)
        self.slots = Slots(info.max_num_seqs)
        self.counters = Counters()
        self.retirement = Retirement(self.slots, self.cache, self._finish)
        self._layout = layout
        self._clock = clock
        self._max_drafts = config.num_speculative_tokens
        self._max_queued = config.max_num_queued_reqs
        self._intake = Intake(config, info, layout, grammar, clock)
        self._requests: dict[str, Request] = {}
        self._waiting = WaitingQueue()
        self._compiling: list[Request] = []  # wait for their grammar
        self._deadlines: list[tuple[float, tuple[int, int], Request]] = []  # a heap
        self._budget = TokenBudget(info.max_num_batched_tokens)
        self._limits: list[Limit] = [
            SeqBudget(lambda: self.slots.num_free),
            PrefillShare(config.prefill_share, self._budget.size, self._is_contended),
            self._budget,
        ]
        if config.pooling is not None and config.pooling.whole_prompts:
            self._limits.append(WholePrompts())

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._compiling)

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    @property
    def num_deferred(self) -> int:
        """Of those that wait: how many cannot start before their grammar is compiled."""
        return len(self._compiling)

    @property
    def has_requests(self) -> bool:
        return bool(self._requests)

    @property
    def only_compiles(self) -> bool:
        """Nothing can be scheduled before some grammar is ready."""
        return 0 < len(self._compiling) == len(self._requests)

    def add(self, message: AddRequest) -> None:
        """Queue a request. Raises PageMillError when it cannot be served."""
        if message.request_id in self._requests:
            raise InvalidParams(f"a request named {message.request_id!r} is under way already")
        if self._max_queued and self.num_waiting >= self._max_queued:
            raise OverloadedError(f"the queue is full: {self.num_waiting} requests wait already")
        request = self._intake.read(message)
        self._requests[request.request_id] = request
        if request.deadline is not None:
            heappush(self._deadlines, (request.deadline, request.sort_key, request))
        if request.grammar is None:
            self._waiting.push(request)
        else:
            self._compiling.append(request)

    def abort(self, request_ids: Iterable[str]) -> list[RequestDelta]:
        """End these requests at once; unknown ones are ignored. Returns their last deltas."""
        found = (self._requests.get(request_id) for request_id in request_ids)
        return [self._end(request, "abort") for request in found if request is not None]

    def abort_all(self) -> list[RequestDelta]:
        """End every request. Returns their last deltas."""
        return self.abort(list(self._requests))

    def end_overdue(self) -> list[RequestDelta]:
        """End the requests whose time is up. Returns their last deltas."""
        deltas = []
        while self._deadlines and self._deadlines[0][0] <= self._clock():
            request = heappop(self._deadlines)[2]
            if request.status is not Status.FINISHED:
                error = f"the request timed out after {request.params.timeout:g} seconds"
                deltas.append(self._end(request, "abort", error))
        return deltas

    def queue_compiled(self) -> list[RequestDelta]:
        """Queue the requests whose grammar is ready. Returns the last deltas of those it fails."""
        ready = [r for r in self._compiling if r.grammar is not None and r.grammar.ready]
        deltas = []
        for request in ready:
            try:
                assert request.grammar is not None
                request.grammar.matcher  # noqa: B018  raises when the compile failed
            except GrammarError as error:
                deltas.append(self._end(request, "error", str(error), error.param))
            else:
                self._compiling.remove(request)
                self._waiting.push(request)
        return deltas

    def schedule(self) -> ScheduledStep | None:
        """The next step, or None when no request can do anything before more is retired."""
        for limit in self._limits:
            limit.begin_step()
        plan = StepPlan()
        self._plan_decodes(plan)
        self._plan_prefills(plan)
        if not plan.num_preempted:  # a preempted request must not come back before its last result
            self._admit_waiting(plan)
        return plan.build(self.slots)

    def update(self, step: ScheduledStep, result: StepResult) -> list[RequestDelta]:
        """Read what a step produced. Returns one delta for each request that got something."""
        return self.retirement.retire(step, result)

    def reset_prefix_cache(self) -> None:
        """Forget all cached text; running requests do not add to the cache any more."""
        self.cache.reset()
        for request in self.slots.requests:
            self.cache.withdraw(request.blocks)

    # Decoding requests: all at once.

    def _plan_decodes(self, plan: StepPlan) -> None:
        drafting = self._max_drafts > 0
        while True:
            rows = self._decode_rows(drafting)
            lacking, num_columns = self._lacking_columns(rows)
            if not len(lacking) or num_columns.sum() <= self.cache.num_free_columns:
                break
            if drafting:
                drafting = False
            else:
                self._preempt(self.slots.least_important, plan)
        if len(lacking):
            self._add_blocks(plan, [rows.requests[row] for row in lacking.tolist()], num_columns)
        self.slots.num_pending[rows.slots] += rows.num_query
        self._budget.left -= rows.num_tokens
        plan.decodes = rows

    def _decode_rows(self, drafting: bool) -> DecodeRows:
        """Resident requests that are not certain to be finished by what is in flight."""
        state = self.slots
        slots, requests = state.decoding()
        longest = state.length[slots] + state.num_pending[slots]
        room = state.max_total[slots] - longest
        if len(slots) > self._budget.left or np.count_nonzero(room <= 0):
            kept = (room > 0).nonzero()[0][: self._budget.left]
            slots, room, longest = slots[kept], room[kept], longest[kept]
            requests = [requests[row] for row in kept.tolist()]
        num_tokens, num_drafts = len(slots), np.zeros(len(slots), np.int32)
        if drafting:
            wanted = np.minimum(state.max_drafts[slots], room - 1)
            taken_before = np.cumsum(wanted, dtype=np.int32) - wanted
            num_drafts = np.clip(self._budget.left - len(slots) - taken_before, 0, wanted)
            num_tokens += int(num_drafts.sum())
        num_query, start = num_drafts + np.int32(1), longest - 1
        return DecodeRows(slots, requests, num_query, num_drafts, start, num_tokens)

    def _lacking_columns(self, rows: DecodeRows) -> tuple[Index, Int32]:
        """Rows whose blocks do not reach their last query token, and how many columns they lack."""
        excess = rows.start + rows.num_query - self.slots.capacity[rows.slots]
        lacking = (excess > 0).nonzero()[0]
        return lacking, -(-excess[lacking] // self._layout.block_size)

    # Requests with known text to compute: one by one, as the limits say.

    def _plan_prefills(self, plan: StepPlan) -> None:
        remaining = deque(self.slots.prefilling())
        while remaining:
            request = remaining.popleft()
            start = int(self.slots.num_computed[request.slot])
            num_query = self._cap(request, len(request.token_ids) - start)
            if num_query == 0:
                continue
            self.cache.drop_passed(request.blocks, start)
            while remaining and start + num_query > self._reachable(request):
                self._preempt(remaining.pop(), plan)
            num_query = min(num_query, self._reachable(request) - start)
            if num_query > 0:
                self._add_prefill(plan, request, start, num_query)

    def _reachable(self, request: Request) -> int:
        """The positions for which the request has, or could get, blocks."""
        num_columns = request.blocks.num_columns + self.cache.num_free_columns
        return num_columns * self._layout.block_size

    def _cap(self, request: Request, num_query: int) -> int:
        for limit in self._limits:
            num_query = limit.cap(request, num_query)
        return num_query

    def _add_prefill(self, plan: StepPlan, request: Request, start: int, num_query: int) -> None:
        slot, end = request.slot, start + num_query
        num_columns = self._layout.columns_for(end) - request.blocks.num_columns
        if num_columns > 0:
            self._add_blocks(plan, [request], np.array([num_columns], np.int32))
        self.slots.num_computed[slot] = end
        samples = end == len(request.token_ids)
        if samples:
            self.slots.num_pending[slot] = 1
            self.slots.make_resident(request)
        self.cache.commit(request.blocks, request.token_ids, end)
        for limit in self._limits:
            limit.take(request, num_query)
        plan.prefills.append(PrefillRow(request, slot, start, num_query, samples))

    def _add_blocks(self, plan: StepPlan, requests: list[Request], num_columns: Int32) -> None:
        """Give each request so many columns more."""
        slots, counts = [request.slot for request in requests], num_columns.tolist()
        holders = [request.blocks for request in requests]
        num_held = [blocks.num_columns for blocks in holders]
        plan.add_blocks(slots, num_held, counts, self.cache.allocate_each(holders, counts))
        self.slots.capacity[slots] += num_columns * self._layout.block_size

    # Waiting requests.

    def _admit_waiting(self, plan: StepPlan) -> None:
        reserved = sum(self._num_lacking(request) for request in self.slots.prefilling())
        skipped: list[Request] = []
        while len(self._waiting) and self.slots.num_free and self._budget.left:
            request = self._waiting.pop()
            cached, num_query = self._look_up(request)
            if num_query and not self._fits(request, cached, reserved):
                skipped.append(request)
                break
            if num_query:
                self._start(plan, request, cached, num_query)
                reserved += self._num_lacking(request)
                continue
            skipped.append(request)
            if len(skipped) > MAX_SKIPPED:
                break
        for request in skipped:
            self._waiting.push(request)
        assert len(self.slots) or not len(self._waiting), "an empty engine admits nothing"

    def _look_up(self, request: Request) -> tuple[CachedPrefix, int]:
        """Cached blocks of a waiting request, and how many tokens it may compute in this step.

        One that a limit holds back is not matched in every step: a long prompt has thousands of
        hashes.
        """
        if request.num_uncached and not self._cap(request, request.num_uncached):
            return self.cache.no_prefix(), 0
        cached = self._match(request)
        request.num_uncached = len(request.token_ids) - self._num_tokens(cached)
        return cached, self._cap(request, request.num_uncached)

    def _match(self, request: Request) -> CachedPrefix:
        if request.wants_every_token:
            return self.cache.no_prefix()
        return self.cache.match(request.blocks, request.token_ids)

    def _num_tokens(self, cached: CachedPrefix) -> int:
        return cached.num_columns * self._layout.block_size

    def _num_lacking(self, request: Request) -> int:
        """Blocks that the request has still to get before all of its known text is computed."""
        return self.cache.num_lacking(request.blocks, len(request.token_ids))

    def _fits(self, request: Request, cached: CachedPrefix, reserved: int) -> bool:
        """All of the known text fits beside what the running requests need to go on."""
        num_free = self.cache.num_free_beside(cached)
        if len(self.slots):
            num_free -= reserved + self._layout.num_usable_blocks // HEADROOM_SHARE
        return self.cache.num_lacking(cached, len(request.token_ids)) <= num_free

    def _start(
        self, plan: StepPlan, request: Request, cached: CachedPrefix, num_query: int
    ) -> None:
        assert request.num_pending == 0, "a request comes back before its last result was retired"
        num_cached = self._num_tokens(cached)
        if request.scheduled_time is None:
            request.scheduled_time = self._clock()
            request.num_cached_tokens = num_cached
            self.counters.prefix_cache_queries += len(request.token_ids)
            self.counters.prefix_cache_hits += num_cached
        self.cache.start(request.blocks, cached)
        max_drafts = 0 if request.grammar is not None else self._max_drafts
        self.slots.admit(request, num_cached, num_cached, max_drafts)
        plan.admitted.append(_admission(request, cached, num_cached))
        self._add_prefill(plan, request, num_cached, num_query)

    def _is_contended(self) -> bool:
        return len(self._waiting) > 0 or len(self.slots.prefilling()) > 1

    # Ends.

    def _preempt(self, request: Request, plan: StepPlan) -> None:
        """Take everything back; the request computes its text again when there is room."""
        request.num_pending = int(self.slots.num_pending[request.slot])
        request.num_preemptions += 1
        self._vacate(request)
        request.status = Status.WAITING
        self._waiting.push(request)
        plan.num_preempted += 1
        self.counters.num_preemptions += 1

    def _vacate(self, request: Request) -> None:
        self.cache.free(request.blocks)
        self.slots.release(request)

    def _finish(self, request: Request) -> None:
        """Forget a request, wherever it is."""
        was_running = request.status is Status.RUNNING
        request.status = Status.FINISHED
        del self._requests[request.request_id]
        if was_running:
            self._vacate(request)
        elif request in self._compiling:
            self._compiling.remove(request)
        else:
            self._waiting.discard(request)

    def _end(
        self, request: Request, reason: str, error: str | None = None, param: str | None = None
    ) -> RequestDelta:
        self._finish(request)
        return RequestDelta(
            request.request_id,
            request.client_id,
            finish_reason="abort" if reason == "abort" else "error",
            num_preemptions=request.num_preemptions,
            error=error,
            error_param=param,
        )


def _admission(request: Request, cached: CachedPrefix, num_cached: int) -> Admission:
    columns = [
        np.array(own.block_ids, np.int32).reshape(cached.num_columns, -1)
        if cached.num_columns
        else np.zeros((0, 1), np.int32)
        for own in cached.groups
    ]
    return Admission(
        slot=request.slot,
        request_id=request.request_id,
        params=request.params,
        seed=request.seed,
        block_ids=np.concatenate(columns, axis=1),
        num_computed=num_cached,
        token_ids=np.frombuffer(request.token_ids[:], np.int32),
        prompt_len=request.prompt_len,
        pooling=request.pooling,
    )

"""From the result of a step to the requests' text, and to what their callers are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagemill.engine.messages import LogprobsChunk, RequestDelta
from pagemill.errors import GrammarError
from pagemill.kvcache.manager import KVCacheManager
from pagemill.scheduler.batch import Bool, Int32
from pagemill.scheduler.plan import ScheduledStep
from pagemill.scheduler.request import Request, Status
from pagemill.scheduler.result import PromptLogprobs, StepResult
from pagemill.scheduler.slots import Index, Slots

_TOKEN_BYTES = 4


class Retirement:
    """Takes back what scheduling promised too much, appends tokens, ends what is complete.

    A row is *current* while its request has kept the slot since the step was scheduled. Rows of
    requests that were preempted since then still yield text; rows of finished ones yield nothing.
    """

    def __init__(
        self, slots: Slots, cache: KVCacheManager, finish: Callable[[Request], None]
    ) -> None:
        self._slots = slots
        self._cache = cache
        self._finish = finish
        self.num_drafts = 0  # counter, rows of steps that had drafts
        self.accepted_by_position: list[int] = []  # counters
        self.num_draft_tokens = 0  # counter
        self.num_accepted_tokens = 0  # counter

    def retire(self, step: ScheduledStep, result: StepResult) -> list[RequestDelta]:
        """One delta for each request that got something."""
        current = self._slots.epoch[step.slots] == step.epochs
        rows = (current & step.batch.samples).nonzero()[0]
        grown = self._settle(step, result, rows)
        preempted = self._settle_preempted(step, current)
        deltas = _append_tokens(step.requests, result, sorted(rows.tolist() + preempted))
        for row in (*self._may_end(step, result, rows), *preempted):
            self._conclude(step.requests[row], deltas[row], result.token_ids[row])
        self._keep_generated(step.requests, grown)
        _describe_first(step, deltas)
        _add_logprobs(step.requests, result, deltas)
        self._add_prompt_logprobs(step, result, current, deltas)
        _add_pooled(step, result, current, deltas)
        return list(deltas.values())

    def _settle(self, step: ScheduledStep, result: StepResult, rows: Index) -> list[int]:
        """Correct the counters of current rows that sample.

        Returns the rows that completed a block of text that has been computed.
        """
        slots, block_size = self._slots, self._cache.layout.block_size
        sampling, num_drafts = step.slots[rows], step.batch.num_drafts[rows]
        num_tokens = result.num_tokens[rows]
        before = slots.length[sampling]
        after = before + num_tokens
        slots.num_pending[sampling] -= num_drafts + 1
        slots.length[sampling] = after
        if result.token_ids.shape[1] > 1:
            self._count_drafts(num_drafts, num_tokens - 1)
        # The last token is not computed yet, so it does not complete a block.
        grown: list[int] = rows[(after - 1) // block_size > (before - 1) // block_size].tolist()
        return grown

    def _count_drafts(self, num_drafts: Int32, num_accepted: Int32) -> None:
        if not np.count_nonzero(num_drafts):
            return
        self.num_drafts += int(np.count_nonzero(num_drafts))
        self.num_draft_tokens += int(num_drafts.sum())
        self.num_accepted_tokens += int(num_accepted.sum())
        longest = int(num_drafts.max())
        missing = longest - len(self.accepted_by_position)
        self.accepted_by_position += [0] * missing
        for position in range(longest):
            self.accepted_by_position[position] += int((num_accepted > position).sum())

    def _settle_preempted(self, step: ScheduledStep, current: Bool) -> list[int]:
        """Rows of requests that lost their slot and wait again: their text is still good."""
        if np.count_nonzero(current) == len(current):
            return []
        lost = (step.batch.samples & ~current).nonzero()[0].tolist()
        waiting = [row for row in lost if step.requests[row].status is not Status.FINISHED]
        for row in waiting:
            step.requests[row].num_pending -= 1 + int(step.batch.num_drafts[row])
        return waiting

    def _may_end(self, step: ScheduledStep, result: StepResult, rows: Index) -> list[int]:
        """Current rows with a stop token, at their full length, or with a grammar."""
        slots, sampling = self._slots, step.slots[rows]
        ending = slots.length[sampling] >= slots.max_total[sampling]
        if step.batch.grammar_rows is not None:
            ending |= slots.has_grammar[sampling]
        stops = slots.stop_ids.take(sampling, axis=1)
        for column in result.token_ids[rows].T:
            hits = stops == column
            if np.count_nonzero(hits):
                ending |= hits.any(axis=0)
        found: list[int] = rows[ending].tolist()
        return found

    def _conclude(self, request: Request, delta: RequestDelta, tokens: Int32) -> None:
        """End the request if its new tokens complete it; those after a stop are dropped."""
        new = tokens[: len(delta.token_ids) // _TOKEN_BYTES].tolist()
        num_kept = _tokens_until_stop(request, new)
        if num_kept:
            del request.token_ids[len(request.token_ids) - len(new) + num_kept :]
            delta.token_ids = delta.token_ids[: num_kept * _TOKEN_BYTES]
            delta.finish_reason = "stop"
            delta.stop_reason = _stop_reason(request, new[num_kept - 1])
        elif request.grammar is not None:
            _follow_grammar(request, delta, new)
        if delta.finish_reason is None and len(request.token_ids) >= request.max_total:
            delta.finish_reason = "length"
        if delta.finish_reason is not None:
            delta.num_preemptions = request.num_preemptions
            if request.status is Status.RUNNING:
                self._keep(request)
            self._finish(request)

    def _keep_generated(self, requests: list[Request], rows: list[int]) -> None:
        """Commit the blocks that generation has completed; give back what the window passed."""
        keep, has_window, running = self._keep, self._cache.has_window, Status.RUNNING
        for row in rows:
            request = requests[row]
            if request.status is running:
                keep(request)
                if has_window:
                    self._cache.drop_passed(request.blocks, len(request.token_ids) - 1)

    def _keep(self, request: Request) -> None:
        self._cache.commit(request.blocks, request.token_ids, len(request.token_ids) - 1)

    def _add_prompt_logprobs(
        self,
        step: ScheduledStep,
        result: StepResult,
        current: Bool,
        deltas: dict[int, RequestDelta],
    ) -> None:
        for row, computed in (result.prompt_logprobs or {}).items():
            request = step.requests[row]
            chunk = _prompt_chunk(request, int(step.batch.start[row]), computed)
            if chunk is None or not current[row]:
                continue  # a preempted request computes these positions again
            request.num_prompt_logprobs += chunk.num_positions
            if row not in deltas:
                deltas[row] = RequestDelta(request.request_id, request.client_id)
            deltas[row].prompt_logprobs = chunk


def _append_tokens(
    requests: list[Request], result: StepResult, rows: list[int]
) -> dict[int, RequestDelta]:
    """Append the new tokens of these rows, given in order; returns their deltas by row.

    The loop over all rows of a step is here and nowhere else.
    """
    width = result.token_ids.shape[1]
    # Whole rows as `bytes`: the fastest way to many small pieces of one array.
    row_type = np.dtype((np.void, width * _TOKEN_BYTES))
    data: list[Any] = np.ascontiguousarray(result.token_ids, "<i4").view(row_type).ravel().tolist()
    if len(rows) < len(requests):
        requests, data = [requests[row] for row in rows], [data[row] for row in rows]
    if width > 1:
        ends = (result.num_tokens[rows] * _TOKEN_BYTES).tolist()
        data = [new[:end] for new, end in zip(data, ends, strict=True)]
    deltas = {}
    for row, request, new in zip(rows, requests, data, strict=True):
        request.token_ids.frombytes(new)
        deltas[row] = RequestDelta(request.request_id, request.client_id, new)
    return deltas


def _tokens_until_stop(request: Request, new: list[int]) -> int:
    """How many of the new tokens, just appended, are left when the first stop cuts; 0 = no stop."""
    num_generated = len(request.token_ids) - request.prompt_len - len(new)
    for num_kept, token in enumerate(new, 1):
        may_stop = num_generated + num_kept >= request.params.min_tokens
        if token in request.stop_ids and may_stop:
            return num_kept
    return 0


def _stop_reason(request: Request, token: int) -> int | None:
    params = request.params
    is_eos = not params.ignore_eos and token in params.eos_token_ids
    return None if is_eos else token


def _follow_grammar(request: Request, delta: RequestDelta, new: list[int]) -> None:
    assert request.grammar is not None
    try:
        if request.grammar.accept(new):
            delta.finish_reason = "stop"
    except GrammarError as error:
        delta.finish_reason = "error"
        delta.error, delta.error_param = str(error), error.param


def _describe_first(step: ScheduledStep, deltas: dict[int, RequestDelta]) -> None:
    """What is told once for each admission: cached tokens, waiting time, preemptions."""
    if not len(step.batch.prompt_tokens):
        return  # all rows are resident
    for row in (~step.batch.resident & step.batch.samples).nonzero()[0].tolist():
        request = step.requests[row]
        if row in deltas:
            deltas[row].num_cached_tokens = request.num_cached_tokens
            deltas[row].scheduled_time = request.scheduled_time
            deltas[row].num_preemptions = request.num_preemptions


def _add_logprobs(
    requests: list[Request], result: StepResult, deltas: dict[int, RequestDelta]
) -> None:
    logprobs = result.logprobs
    if logprobs is None:
        return
    for row, delta in deltas.items():
        top = requests[row].params.logprobs
        if top is not None:
            count = len(delta.token_ids) // _TOKEN_BYTES
            delta.logprobs = _chunk(
                logprobs.token_ids[row, :count],
                logprobs.logprobs[row, :count],
                logprobs.ranks[row, :count],
                top,
            )


def _add_pooled(
    step: ScheduledStep, result: StepResult, current: Bool, deltas: dict[int, RequestDelta]
) -> None:
    """Vectors of a request, or of its tokens that were not reported before a preemption."""
    for row, vectors in (result.pooled or {}).items():
        request = step.requests[row]
        if not current[row] and row not in deltas:
            continue  # it has ended, or computes these tokens again
        if vectors.ndim > 1:
            vectors = vectors[max(0, request.num_pooled - int(step.batch.start[row])) :]
            request.num_pooled += len(vectors)
        if row not in deltas:
            deltas[row] = RequestDelta(request.request_id, request.client_id)
        deltas[row].pooled = np.ascontiguousarray(vectors, "<f4").tobytes()


def _prompt_chunk(request: Request, start: int, computed: PromptLogprobs) -> LogprobsChunk | None:
    """The positions after `start` that were not reported before a preemption."""
    skip = request.num_prompt_logprobs - start
    assert skip >= 0, "prompt positions are computed in order"
    top = request.params.prompt_logprobs
    if top is None or skip >= len(computed.ranks):
        return None
    return _chunk(computed.token_ids[skip:], computed.logprobs[skip:], computed.ranks[skip:], top)


def _chunk(
    token_ids: NDArray[np.int32], logprobs: NDArray[np.float32], ranks: NDArray[np.int32], top: int
) -> LogprobsChunk:
    """The first 1 + `top` columns as bytes; a negative `top` means all of them."""
    width = token_ids.shape[1] if top < 0 else min(1 + top, token_ids.shape[1])
    return LogprobsChunk(
        num_positions=len(ranks),
        width=width,
        token_ids=np.ascontiguousarray(token_ids[:, :width], "<i4").tobytes(),
        logprobs=np.ascontiguousarray(logprobs[:, :width], "<f4").tobytes(),
        ranks=np.ascontiguousarray(ranks, "<i4").tobytes(),
    )

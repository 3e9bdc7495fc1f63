"""Faults, each of which breaks one invariant of the engine loop. `MUTATIONS` names them all.

A mutation replaces one piece of the real code with a wrong one, through pytest's `MonkeyPatch`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pytest import MonkeyPatch

from engine.fake_device import FakeExecutor
from pagemill.config.cache import CacheGroup
from pagemill.engine.engine import Engine
from pagemill.kvcache import hashing
from pagemill.kvcache.block_pool import BlockPool
from pagemill.kvcache.manager import GroupBlocks, KVCacheManager
from pagemill.kvcache.spec import NULL_BLOCK
from pagemill.scheduler import plan, retire, scheduler
from pagemill.scheduler.retire import Retirement
from pagemill.scheduler.scheduler import Scheduler
from pagemill.scheduler.slots import Slots

Mutation = Callable[[MonkeyPatch], None]


def _after(patch: MonkeyPatch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Let `change(result, *args)` replace what the method returns."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kw: change(original(*args, **kw), *args))


def rejected_drafts_stay_pending(patch: MonkeyPatch) -> None:
    def change(result: Any, retirement: Any, step: Any, outcome: Any, rows: Any) -> Any:
        slots, drafts = step.batch.slots[rows], step.batch.num_drafts[rows]
        retirement._slots.num_pending[slots] += drafts + 1 - outcome.num_tokens[rows]
        return result

    _after(patch, Retirement, "_settle", change)


def one_known_token_left_counts_as_resident(patch: MonkeyPatch) -> None:
    def change(batch: Any, _plan: Any) -> Any:
        known = ~batch.resident
        lengths = batch.num_query[known]
        keep = np.repeat(~((lengths == 1) & (batch.start[known] > 0)), lengths)
        batch.resident = batch.resident | ((batch.num_query == 1) & (batch.start > 0))
        batch.prompt_tokens = batch.prompt_tokens[keep]
        return batch

    _after(patch, plan.StepPlan, "_rows", change)


def last_token_is_committed_before_it_is_computed(patch: MonkeyPatch) -> None:
    def keep(self: Any, request: Any) -> None:
        self._cache.commit(request.blocks, request.token_ids, len(request.token_ids))

    patch.setattr(Retirement, "_keep", keep)


def text_is_committed_a_block_early(patch: MonkeyPatch) -> None:
    original = KVCacheManager.commit

    def commit(self: Any, blocks: Any, token_ids: Any, num_tokens: int) -> None:
        early = min(len(token_ids), num_tokens + self.layout.block_size - 1)
        original(self, blocks, token_ids, min(early, blocks.num_columns * 8))

    patch.setattr(KVCacheManager, "commit", commit)


def preempted_requests_come_back_at_once(patch: MonkeyPatch) -> None:
    original = Scheduler._preempt

    def preempt(self: Any, request: Any, step_plan: Any) -> None:
        original(self, request, step_plan)
        step_plan.num_preempted = 0

    patch.setattr(Scheduler, "_preempt", preempt)


def preempted_requests_lose_their_last_result(patch: MonkeyPatch) -> None:
    patch.setattr(Retirement, "_settle_preempted", lambda self, step, current: [])


def rows_of_preempted_requests_come_last(patch: MonkeyPatch) -> None:
    patch.setattr(retire, "sorted", list, raising=False)


def blocks_are_freed_by_their_first_holder(patch: MonkeyPatch) -> None:
    def release(self: Any, blocks: Any) -> None:
        for block in blocks:
            if self._num_holders[block]:
                self._num_holders[block] = 0
                self._free.append(block)

    patch.setattr(BlockPool, "release", release)


def reused_blocks_keep_their_hash(patch: MonkeyPatch) -> None:
    patch.setattr(BlockPool, "_forget", lambda self, block: None)
    patch.setattr(
        BlockPool,
        "register",
        lambda self, blocks, block_hash: self._blocks_of.setdefault(block_hash, tuple(blocks)),
    )


def cached_blocks_stay_in_the_free_list(patch: MonkeyPatch) -> None:
    def acquire(self: Any, blocks: Any) -> None:
        for block in blocks:
            self._num_holders[block] += 1

    patch.setattr(BlockPool, "acquire", acquire)


def hashes_forget_what_came_before(patch: MonkeyPatch) -> None:
    original = hashing._chain

    def chain(parent: bytes, data: bytes, block_size: int, hasher: Any) -> list[bytes]:
        stride = 4 * block_size
        pieces = [data[i : i + stride] for i in range(0, len(data) - stride + 1, stride)]
        return [original(b"", piece, block_size, hasher)[0] for piece in pieces]

    patch.setattr(hashing, "_chain", chain)


def certain_ends_are_launched_again(patch: MonkeyPatch) -> None:
    original = Scheduler._decode_rows

    def decode_rows(self: Any, drafting: bool) -> Any:
        self.slots.max_total += 1
        rows = original(self, drafting)
        self.slots.max_total -= 1
        return rows

    patch.setattr(Scheduler, "_decode_rows", decode_rows)


def drafts_reach_beyond_the_end(patch: MonkeyPatch) -> None:
    original = Scheduler._decode_rows

    def decode_rows(self: Any, drafting: bool) -> Any:
        rows = original(self, drafting)
        extra = np.int32(drafting) * (rows.num_drafts == 0)
        return rows._replace(
            num_drafts=(rows.num_drafts + extra).astype(np.int32),
            num_query=(rows.num_query + extra).astype(np.int32),
        )

    patch.setattr(Scheduler, "_decode_rows", decode_rows)


def results_of_the_slots_last_request_count(patch: MonkeyPatch) -> None:
    original = Slots.release

    def release(self: Any, request: Any) -> None:
        slot = request.slot
        original(self, request)
        self.epoch[slot] -= 1

    patch.setattr(Slots, "release", release)


def tokens_after_a_stop_are_kept(patch: MonkeyPatch) -> None:
    def find(request: Any, new: list[int]) -> int:
        return len(new) if request.stop_ids.intersection(new) else 0

    patch.setattr(retire, "_tokens_until_stop", find)


def masks_are_made_before_the_last_tokens_are_known(patch: MonkeyPatch) -> None:
    original = FakeExecutor.forward

    def step(self: Engine) -> Any:
        deltas = self._end_outside_steps()
        scheduled = self.scheduler.schedule()
        if scheduled is None:
            return deltas + self._retire()
        batch = scheduled.batch
        original(self._executor, batch)  # type: ignore[arg-type]
        mask = self._bitmask(scheduled) if batch.needs_grammar else None
        result = self._executor.sample(batch, mask)
        deltas += self._retire()
        self._in_flight = scheduled, result
        return deltas if self._overlap else deltas + self._retire()

    patch.setattr(Engine, "step", step)


def forward_overtakes_what_was_enqueued_before(patch: MonkeyPatch) -> None:
    def forward(self: FakeExecutor, batch: Any) -> None:
        self.batches.append(batch)
        self._forward(batch)

    patch.setattr(FakeExecutor, "forward", forward)


def uploads_share_one_buffer(patch: MonkeyPatch) -> None:
    buffer = np.zeros(4096, np.int32)
    original = plan._known_tokens

    def known_tokens(rows: Any) -> Any:
        tokens = original(rows)
        buffer[: len(tokens)] = tokens
        return buffer[: len(tokens)]

    patch.setattr(plan, "_known_tokens", known_tokens)


def the_window_drops_a_block_too_much(patch: MonkeyPatch) -> None:
    original = KVCacheManager.drop_passed

    def drop(self: Any, blocks: Any, position: int) -> None:
        original(self, blocks, position + self.layout.block_size)

    patch.setattr(KVCacheManager, "drop_passed", drop)


def the_window_counts_for_all_tables(patch: MonkeyPatch) -> None:
    patch.setattr(CacheGroup, "first_needed", lambda self, position: max(0, position - 8))


def a_hit_needs_nothing_of_the_window(patch: MonkeyPatch) -> None:
    def find(self: Any, index: int, hashes: list[bytes]) -> Any:
        end, num_tables = len(hashes), self.layout.groups[index].num_tables
        return end, GroupBlocks([NULL_BLOCK] * end * num_tables, end)

    patch.setattr(KVCacheManager, "_find_window", find)


def the_groups_find_each_others_blocks(patch: MonkeyPatch) -> None:
    original = KVCacheManager.__init__

    def init(self: Any, layout: Any, **options: Any) -> None:
        original(self, layout, **options)
        self._suffixes = [b""] * len(layout.groups)

    patch.setattr(KVCacheManager, "__init__", init)


def a_content_outlives_one_of_its_blocks(patch: MonkeyPatch) -> None:
    def forget(self: Any, taken: int) -> None:
        name = self._hash_of[taken]
        if self._blocks_of.get(name, (taken,))[-1] == taken:
            self._blocks_of.pop(name, None)
        self._hash_of[taken] = None

    patch.setattr(BlockPool, "_forget", forget)


def the_cached_tables_are_admitted_in_another_order(patch: MonkeyPatch) -> None:
    def change(admission: Any, *_args: Any) -> Any:
        admission.block_ids = admission.block_ids[:, ::-1].copy()
        return admission

    _after(patch, scheduler, "_admission", change)


def a_whole_prompt_may_be_cached(patch: MonkeyPatch) -> None:
    original = KVCacheManager.match
    patch.setattr(
        KVCacheManager,
        "match",
        lambda self, blocks, token_ids: original(self, blocks, token_ids + token_ids[-1:]),
    )


def finished_requests_keep_their_blocks(patch: MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_vacate", lambda self, request: self.slots.release(request))


MUTATIONS: tuple[Mutation, ...] = (
    rejected_drafts_stay_pending,
    one_known_token_left_counts_as_resident,
    last_token_is_committed_before_it_is_computed,
    text_is_committed_a_block_early,
    preempted_requests_come_back_at_once,
    preempted_requests_lose_their_last_result,
    rows_of_preempted_requests_come_last,
    blocks_are_freed_by_their_first_holder,
    reused_blocks_keep_their_hash,
    cached_blocks_stay_in_the_free_list,
    hashes_forget_what_came_before,
    certain_ends_are_launched_again,
    drafts_reach_beyond_the_end,
    results_of_the_slots_last_request_count,
    tokens_after_a_stop_are_kept,
    masks_are_made_before_the_last_tokens_are_known,
    forward_overtakes_what_was_enqueued_before,
    uploads_share_one_buffer,
    the_window_drops_a_block_too_much,
    the_window_counts_for_all_tables,
    a_hit_needs_nothing_of_the_window,
    the_groups_find_each_others_blocks,
    a_content_outlives_one_of_its_blocks,
    the_cached_tables_are_admitted_in_another_order,
    a_whole_prompt_may_be_cached,
    finished_requests_keep_their_blocks,
)

"""Matching, committing and giving back, without a scheduler."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from pagemill.config.cache import CacheGroup, CacheLayout
from pagemill.kvcache.hashing import hash_blocks, split_hashes
from pagemill.kvcache.manager import KVCacheManager, RequestBlocks
from pagemill.kvcache.spec import NULL_BLOCK

BLOCK_SIZE = 4


MIXED = (CacheGroup(), CacheGroup(5, num_tables=2))


def _manager(
    num_blocks: int = 17,
    window: int = 0,
    groups: tuple[CacheGroup, ...] | None = None,
    **options: bool,
) -> KVCacheManager:
    groups = groups or (CacheGroup(window),)
    return KVCacheManager(CacheLayout(BLOCK_SIZE, num_blocks, groups), **options)


def _ids(blocks: RequestBlocks, group: int = 0) -> list[int]:
    return blocks.groups[group].block_ids


def _text(length: int) -> array[int]:
    return array("i", range(length))


def _blocks(text: array[int], salt: str = "") -> RequestBlocks:
    hashes = hash_blocks(np.frombuffer(text, np.int32), BLOCK_SIZE, b"", salt)
    return RequestBlocks(hashes=split_hashes(hashes))


def _compute(manager: KVCacheManager, text: array[int]) -> RequestBlocks:
    """A request whose whole text has been computed."""
    blocks = _blocks(text)
    manager.start(blocks, manager.match(blocks, text))
    manager.allocate(blocks, manager.layout.columns_for(len(text)) - blocks.num_columns)
    manager.commit(blocks, text, len(text))
    return blocks


def _take(manager: KVCacheManager, count: int) -> RequestBlocks:
    """Something else that needs columns."""
    blocks = RequestBlocks()
    manager.start(blocks, manager.no_prefix())
    manager.allocate(blocks, count)
    return blocks


def test_a_later_request_shares_the_blocks_of_an_earlier_one() -> None:
    manager = _manager()
    first = _compute(manager, _text(14))
    second = _compute(manager, _text(12) + array("i", [99, 98]))
    assert _ids(second)[:3] == _ids(first)[:3]
    assert _ids(second)[3] != _ids(first)[3]
    assert manager.usage == pytest.approx(5 / 16)


@pytest.mark.parametrize(("length", "num_cached"), [(8, 1), (9, 2), (12, 2), (13, 3), (3, 0)])
def test_a_match_leaves_a_token_to_compute(length: int, num_cached: int) -> None:
    manager = _manager()
    manager.free(_compute(manager, _text(16)))
    assert manager.match(_blocks(_text(length)), _text(length)).num_columns == num_cached


def test_another_salt_finds_nothing() -> None:
    manager = _manager()
    _compute(manager, _text(16))
    assert manager.match(_blocks(_text(16), salt="tenant"), _text(16)).num_columns == 0


def test_without_prefix_caching_nothing_is_found() -> None:
    manager = _manager(prefix_caching=False)
    _compute(manager, _text(16))
    assert manager.match(_blocks(_text(16)), _text(16)).num_columns == 0


def test_generated_text_is_found_by_a_prompt_that_contains_it() -> None:
    manager = _manager()
    prompt, whole = _text(6), _text(13)
    blocks = _blocks(prompt)
    manager.start(blocks, manager.no_prefix())
    manager.allocate(blocks, 4)
    manager.commit(blocks, whole, 12)
    assert manager.match(_blocks(whole), whole).groups[0].block_ids == _ids(blocks)[:3]


def test_the_end_of_a_text_is_forgotten_before_its_beginning() -> None:
    manager = _manager(num_blocks=5)
    manager.free(_compute(manager, _text(16)))
    _take(manager, 1)
    assert manager.match(_blocks(_text(16)), _text(16)).num_columns == 3


def test_free_blocks_do_not_count_cached_ones_that_will_be_held() -> None:
    manager = _manager(num_blocks=5)
    manager.free(_compute(manager, _text(16)))
    cached = manager.match(_blocks(_text(9)), _text(9))
    assert (manager.num_free_columns, manager.num_free_beside(cached)) == (4, 2)


def test_reset_forgets_and_withdrawn_requests_add_nothing() -> None:
    manager = _manager()
    running = _compute(manager, _text(6))
    manager.reset()
    manager.withdraw(running)
    manager.commit(running, _text(6), 6)
    assert manager.match(_blocks(_text(16)), _text(16)).num_columns == 0
    manager.free(running)
    assert manager.usage == 0


def test_blocks_behind_the_window_are_given_back() -> None:
    manager = _manager(window=5)
    blocks = _compute(manager, _text(16))
    manager.drop_passed(blocks, 12)  # reads 8 to 12
    assert _ids(blocks)[:2] == [NULL_BLOCK] * 2 and NULL_BLOCK not in _ids(blocks)[2:]
    assert manager.usage == pytest.approx(2 / 16)
    manager.free(blocks)
    assert manager.usage == 0


def test_with_a_window_only_the_end_of_the_prefix_must_be_cached() -> None:
    manager = _manager(num_blocks=6, window=5)
    earlier = _compute(manager, _text(20))
    manager.drop_passed(earlier, 16)  # reads 12 to 16
    _take(manager, 3)  # the dropped blocks are taken for something else
    found = manager.match(_blocks(_text(20)), _text(20))
    assert found.groups[0].block_ids == [NULL_BLOCK] * 3 + _ids(earlier)[3:4]
    later = _blocks(_text(20))
    manager.start(later, found)
    manager.free(earlier)
    assert manager.usage == pytest.approx(4 / 5)
    manager.free(later)
    assert manager.usage == pytest.approx(3 / 5)


def test_groups_share_the_blocks_and_drop_their_own() -> None:
    manager = _manager(num_blocks=31, groups=MIXED)
    blocks = _compute(manager, _text(20))
    assert [len(_ids(blocks, group)) for group in (0, 1)] == [5, 10]
    assert len({*_ids(blocks, 0), *_ids(blocks, 1)}) == 15
    manager.drop_passed(blocks, 16)  # the window reads 12 to 16
    assert NULL_BLOCK not in _ids(blocks, 0)
    assert _ids(blocks, 1)[:6] == [NULL_BLOCK] * 6 and NULL_BLOCK not in _ids(blocks, 1)[6:]
    assert manager.usage == pytest.approx((5 + 2 * 2) / 30)
    manager.free(blocks)
    assert manager.usage == 0


def test_new_columns_come_table_by_table() -> None:
    manager = _manager(num_blocks=31, groups=MIXED)
    blocks = RequestBlocks()
    manager.start(blocks, manager.no_prefix())
    new = manager.allocate(blocks, 2)
    assert _ids(blocks, 0) == [new[0], new[3]]
    assert _ids(blocks, 1) == [new[1], new[2], new[4], new[5]]


def test_a_hit_needs_all_of_one_group_and_the_window_of_the_other() -> None:
    manager = _manager(num_blocks=31, groups=MIXED)
    earlier = _compute(manager, _text(20))
    manager.drop_passed(earlier, 20)
    taken = _take(manager, 7)  # blocks without content, then those that were dropped
    found = manager.match(_blocks(_text(24)), _text(24))
    assert found.num_columns == 5
    assert found.groups[0].block_ids == _ids(earlier, 0)
    assert found.groups[1].block_ids == [NULL_BLOCK] * 8 + _ids(earlier, 1)[8:]
    # A text that leaves earlier finds the full group's blocks, but not its window's.
    assert manager.match(_blocks(_text(15)), _text(15)).num_columns == 0
    later = _blocks(_text(24))
    manager.start(later, found)
    manager.free(taken)
    manager.free(earlier)
    assert manager.usage == pytest.approx((5 + 2) / 30)
    manager.free(later)
    assert manager.usage == 0


def test_a_hit_ends_where_the_full_group_does() -> None:
    """The window's blocks of a later place are found, but their text's beginning is not."""
    manager = _manager(num_blocks=31, groups=MIXED)
    earlier = _compute(manager, _text(20))
    full = _ids(earlier, 0)
    manager._pool._blocks_of.pop(manager._pool._hash_of[full[2]])
    assert manager.match(_blocks(_text(20)), _text(20)).num_columns == 2


def test_what_is_lacking_counts_a_window_once() -> None:
    manager = KVCacheManager(CacheLayout(BLOCK_SIZE, 100, MIXED, step_tokens=8))
    live = (5 + 8) // BLOCK_SIZE + 1 + 2
    assert manager.num_lacking(manager.no_prefix(), 40) == 10 + 2 * live
    blocks = _compute(manager, _text(16))
    assert manager.num_lacking(blocks, 40) == 6 + 2 * (live - 4)
    manager.drop_passed(blocks, 15)
    assert manager.num_lacking(blocks, 40) == 6 + 2 * (live - 2)
    assert manager.num_lacking(blocks, 16) == 0

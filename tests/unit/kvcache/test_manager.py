"""Matching, committing and giving back, without a scheduler."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from pagemill.kvcache.hashing import hash_blocks, split_hashes
from pagemill.kvcache.manager import KVCacheManager, RequestBlocks
from pagemill.kvcache.spec import NULL_BLOCK, CacheGroup, shared_window

BLOCK_SIZE = 4


def _manager(num_blocks: int = 17, window: int = 0, **options: bool) -> KVCacheManager:
    return KVCacheManager(CacheGroup(BLOCK_SIZE, num_blocks, window), **options)


def _text(length: int) -> array[int]:
    return array("i", range(length))


def _blocks(text: array[int], salt: str = "") -> RequestBlocks:
    hashes = hash_blocks(np.frombuffer(text, np.int32), BLOCK_SIZE, b"", salt)
    return RequestBlocks(hashes=split_hashes(hashes))


def _compute(manager: KVCacheManager, text: array[int]) -> RequestBlocks:
    """A request whose whole text has been computed."""
    blocks = _blocks(text)
    manager.start(blocks, manager.match(blocks, text))
    manager.allocate(blocks, manager.group.blocks_for(len(text)) - len(blocks.block_ids))
    manager.commit(blocks, text, len(text))
    return blocks


def test_a_later_request_shares_the_blocks_of_an_earlier_one() -> None:
    manager = _manager()
    first = _compute(manager, _text(14))
    second = _compute(manager, _text(12) + array("i", [99, 98]))
    assert second.block_ids[:3] == first.block_ids[:3]
    assert second.block_ids[3] != first.block_ids[3]
    assert manager.usage == pytest.approx(5 / 16)


@pytest.mark.parametrize(("length", "num_cached"), [(8, 1), (9, 2), (12, 2), (13, 3), (3, 0)])
def test_a_match_leaves_a_token_to_compute(length: int, num_cached: int) -> None:
    manager = _manager()
    manager.free(_compute(manager, _text(16)))
    assert len(manager.match(_blocks(_text(length)), _text(length))) == num_cached


def test_another_salt_finds_nothing() -> None:
    manager = _manager()
    _compute(manager, _text(16))
    assert manager.match(_blocks(_text(16), salt="tenant"), _text(16)) == []


def test_without_prefix_caching_nothing_is_found() -> None:
    manager = _manager(prefix_caching=False)
    _compute(manager, _text(16))
    assert manager.match(_blocks(_text(16)), _text(16)) == []


def test_generated_text_is_found_by_a_prompt_that_contains_it() -> None:
    manager = _manager()
    prompt, whole = _text(6), _text(13)
    blocks = _blocks(prompt)
    manager.start(blocks, [])
    manager.allocate(blocks, 4)
    manager.commit(blocks, whole, 12)
    assert manager.match(_blocks(whole), whole) == blocks.block_ids[:3]


def test_the_end_of_a_text_is_forgotten_before_its_beginning() -> None:
    manager = _manager(num_blocks=5)
    manager.free(_compute(manager, _text(16)))
    manager.allocate(RequestBlocks(), 1)
    assert len(manager.match(_blocks(_text(16)), _text(16))) == 3


def test_free_blocks_do_not_count_cached_ones_that_will_be_held() -> None:
    manager = _manager(num_blocks=5)
    manager.free(_compute(manager, _text(16)))
    cached = manager.match(_blocks(_text(9)), _text(9))
    assert (manager.num_free_blocks, manager.num_free_beside(cached)) == (4, 2)


def test_reset_forgets_and_withdrawn_requests_add_nothing() -> None:
    manager = _manager()
    running = _compute(manager, _text(6))
    manager.reset()
    manager.withdraw(running)
    manager.commit(running, _text(6), 6)
    assert manager.match(_blocks(_text(16)), _text(16)) == []
    manager.free(running)
    assert manager.usage == 0


def test_blocks_behind_the_window_are_given_back() -> None:
    manager = _manager(window=5)
    blocks = _compute(manager, _text(16))
    manager.drop_passed(blocks, 12)  # reads 8 to 12
    assert blocks.block_ids[:2] == [NULL_BLOCK] * 2 and NULL_BLOCK not in blocks.block_ids[2:]
    assert manager.usage == pytest.approx(2 / 16)
    manager.free(blocks)
    assert manager.usage == 0


def test_with_a_window_only_the_end_of_the_prefix_must_be_cached() -> None:
    manager = _manager(num_blocks=6, window=5)
    earlier = _compute(manager, _text(20))
    manager.drop_passed(earlier, 16)  # reads 12 to 16
    manager.allocate(RequestBlocks(), 3)  # the dropped blocks are taken for something else
    found = manager.match(_blocks(_text(20)), _text(20))
    assert found == [NULL_BLOCK] * 3 + earlier.block_ids[3:4]
    later = _blocks(_text(20))
    manager.start(later, found)
    manager.free(earlier)
    assert manager.usage == pytest.approx(4 / 5)
    manager.free(later)
    assert manager.usage == pytest.approx(3 / 5)


@pytest.mark.parametrize(("windows", "window"), [([], 0), ([4, 0, 4], 0), ([4, 4], 4), ([4, 8], 8)])
def test_a_group_keeps_what_any_layer_reads(windows: list[int], window: int) -> None:
    assert shared_window(windows) == window

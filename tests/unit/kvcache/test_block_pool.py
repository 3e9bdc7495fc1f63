"""The block pool against a model of it that is too simple to be wrong."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagemill.kvcache.block_pool import BlockPool
from pagemill.kvcache.spec import NULL_BLOCK

NUM_BLOCKS = 8


class PoolMachine(RuleBasedStateMachine):
    """Keeps the free blocks in a plain list, front first, and the holders in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.free = list(range(1, NUM_BLOCKS))
        self.holders: dict[int, int] = {}
        self.hash_of: dict[int, bytes] = {}

    @rule(count=st.integers(0, 3))
    def allocate(self, count: int) -> None:
        if count > len(self.free):
            with pytest.raises(AssertionError):
                self.pool.allocate(count)
            return
        blocks = self.pool.allocate(count)
        assert blocks == self.free[:count]
        del self.free[:count]
        for block in blocks:
            self.holders[block] = 1
            self.hash_of.pop(block, None)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.holders)))
        self.pool.release([block])
        self.holders[block] -= 1
        if self.holders[block] == 0:
            del self.holders[block]
            self.free.insert(len(self.free) if block in self.hash_of else 0, block)

    @precondition(lambda self: set(self.holders) - set(self.hash_of))
    @rule(data=st.data(), name=st.integers(0, 5))
    def register(self, data: st.DataObject, name: int) -> None:
        block = data.draw(st.sampled_from(sorted(set(self.holders) - set(self.hash_of))))
        block_hash = bytes([name])
        self.pool.register([block], block_hash)
        if block_hash not in self.hash_of.values():
            self.hash_of[block] = block_hash

    @rule(name=st.integers(0, 5))
    def acquire(self, name: int) -> None:
        found = self.pool.find(bytes([name]))
        if found is not None:
            (block,) = found
            self.pool.acquire([block])
            self.holders[block] = self.holders.get(block, 0) + 1
            if block in self.free:
                self.free.remove(block)

    @rule()
    def forget_all(self) -> None:
        self.pool.forget_all()
        self.hash_of.clear()

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.pool.num_free == len(self.free)
        assert self.pool.num_cached == len(self.hash_of)
        for block in range(NUM_BLOCKS):
            assert self.pool.num_holders(block) == self.holders.get(block, 0)
        for block, block_hash in self.hash_of.items():
            assert self.pool.find(block_hash) == (block,)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_null_block_is_never_handed_out() -> None:
    pool = BlockPool(4)
    assert NULL_BLOCK not in pool.allocate(3)
    with pytest.raises(AssertionError):
        pool.allocate(1)


def test_blocks_with_content_outlive_blocks_without() -> None:
    pool = BlockPool(4)
    named, nameless, other = pool.allocate(3)
    pool.register([named], b"hash")
    pool.release([named, nameless, other])
    pool.allocate(2)
    assert pool.find(b"hash") == (named,)
    assert pool.allocate(1) == [named]
    assert pool.find(b"hash") is None


def test_a_block_that_is_not_held_cannot_be_released() -> None:
    pool = BlockPool(3)
    with pytest.raises(AssertionError, match="not held"):
        pool.release([1])


def test_blocks_with_a_content_in_common_are_forgotten_together() -> None:
    pool = BlockPool(7)
    older, pair = pool.allocate(1), pool.allocate(2)
    pool.register(pair, b"pair")
    pool.register(older, b"older")
    pool.release([*pair, *older])
    pool.allocate(3)  # those without content
    assert pool.find(b"pair") == tuple(pair)
    assert pool.allocate(1) == pair[:1]
    assert pool.find(b"pair") is None and pool.find(b"older") == tuple(older)
    assert pool.allocate(1) == pair[1:], "the other half is of no use any more"


def test_the_first_blocks_with_some_content_keep_the_name() -> None:
    pool = BlockPool(5)
    first, second = pool.allocate(2), pool.allocate(2)
    pool.register(first, b"same")
    pool.register(second, b"same")
    assert pool.find(b"same") == tuple(first)
    pool.release([*first, *second])
    assert set(pool.allocate(2)) == set(second), "blocks without a name are taken first"

"""Blocks of the KV cache: who holds them, what they contain, which one to take next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pagemill.kvcache.spec import NULL_BLOCK


class FreeList:
    """A queue of block ids from which any member can be removed in constant time.

    A doubly linked ring over two lists; `NULL_BLOCK`, which is never free, is its anchor.
    """

    def __init__(self, num_blocks: int) -> None:
        self._next: list[int] = [*range(1, num_blocks), NULL_BLOCK]
        self._prev: list[int] = [num_blocks - 1, *range(num_blocks - 1)]
        self._size = num_blocks - 1

    def __len__(self) -> int:
        return self._size

    def append(self, block: int) -> None:
        """Put at the back, to be taken last."""
        self._link(self._prev[NULL_BLOCK], block, NULL_BLOCK)

    def prepend(self, block: int) -> None:
        """Put at the front, to be taken next."""
        self._link(NULL_BLOCK, block, self._next[NULL_BLOCK])

    def take(self, count: int) -> list[int]:
        """Take the front blocks, as many as there are at most."""
        assert count <= self._size, f"{count} blocks wanted, {self._size} free"
        taken, following, block = [], self._next, self._next[NULL_BLOCK]
        for _ in range(count):
            taken.append(block)
            block = following[block]
        following[NULL_BLOCK], self._prev[block] = block, NULL_BLOCK
        self._size -= count
        return taken

    def remove(self, block: int) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before] = after
        self._prev[after] = before
        self._size -= 1

    def _link(self, before: int, block: int, after: int) -> None:
        self._next[before] = self._prev[after] = block
        self._prev[block], self._next[block] = before, after
        self._size += 1


class BlockPool:
    """Reference counts, the least recently used order of free blocks, and the hash of each block.

    Content is named for one block or for several that are held and released together. What
    nobody holds keeps its content, and can be found by its hash, until a block of it is needed
    for something else. `NULL_BLOCK` is never handed out.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 2, "a cache needs a block besides the null block"
        self._free = FreeList(num_blocks)
        self._num_holders = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._blocks_of: dict[bytes, tuple[int, ...]] = {}
        self.num_usable = num_blocks - 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Contents that can be found by a hash, held or free."""
        return len(self._blocks_of)

    def num_holders(self, block: int) -> int:
        return self._num_holders[block]

    def allocate(self, count: int) -> list[int]:
        """Take the `count` least recently used free blocks; what they held is forgotten."""
        blocks = self._free.take(count)
        holders, hash_of = self._num_holders, self._hash_of
        for block in blocks:
            holders[block] = 1
        for block in blocks:
            if hash_of[block] is not None:
                self._forget(block)
        return blocks

    def acquire(self, blocks: Iterable[int]) -> None:
        """Become a further holder of blocks that `find` returned."""
        for block in blocks:
            if self._num_holders[block] == 0:
                self._free.remove(block)
            self._num_holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Give up blocks. Among those that become free, the first given is taken again first."""
        for block in blocks:
            assert self._num_holders[block] > 0, f"block {block} is released but not held"
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                if self._hash_of[block] is None:
                    self._free.prepend(block)
                else:
                    self._free.append(block)

    def find(self, block_hash: bytes) -> tuple[int, ...] | None:
        """The blocks with this content, held or free."""
        return self._blocks_of.get(block_hash)

    def register(self, blocks: Sequence[int], block_hash: bytes) -> None:
        """Name the content of held blocks; the first ones with some content keep the name."""
        own = tuple(blocks)
        if self._blocks_of.setdefault(block_hash, own) is own:
            holders, hash_of = self._num_holders, self._hash_of
            for block in own:
                assert holders[block] > 0 and hash_of[block] is None
                hash_of[block] = block_hash

    def forget_all(self) -> None:
        """Drop every hash; the holders keep their blocks."""
        for blocks in self._blocks_of.values():
            for block in blocks:
                self._hash_of[block] = None
        self._blocks_of.clear()

    def _forget(self, taken: int) -> None:
        """Drop the content of a block that was just taken; those of its blocks that are free
        are taken next.
        """
        block_hash = self._hash_of[taken]
        assert block_hash is not None
        for block in self._blocks_of.pop(block_hash):
            self._hash_of[block] = None
            if self._num_holders[block] == 0:
                self._free.remove(block)
                self._free.prepend(block)

"""Which blocks a request holds, and which of its text the prefix cache already knows."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from pagemill.kvcache.block_pool import BlockPool
from pagemill.kvcache.hashing import extend
from pagemill.kvcache.spec import NULL_BLOCK, CacheGroup


@dataclass(eq=False, slots=True)
class RequestBlocks:
    """A request's blocks, in the order of its text, and the hashes of its full blocks.

    A request without `hashes` takes no part in the prefix cache.
    """

    hashes: list[bytes] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    num_committed: int = 0  # leading blocks that were offered to the prefix cache
    num_dropped: int = 0  # leading blocks given back because the window has passed them


class KVCacheManager:
    """Hands out the blocks of one group of layers.

    All methods take constant time for each block they touch. Freed blocks may be reused at once:
    the device works in order.
    """

    def __init__(self, group: CacheGroup, *, prefix_caching: bool = True, key: bytes = b"") -> None:
        self.group = group
        self._prefix_caching = prefix_caching
        self._key = key
        self._pool = BlockPool(group.num_blocks)

    @property
    def num_free_blocks(self) -> int:
        return self._pool.num_free

    @property
    def usage(self) -> float:
        """The share of blocks that requests hold, 0 to 1."""
        return 1 - self._pool.num_free / self._pool.num_usable

    def match(self, blocks: RequestBlocks, token_ids: array[int]) -> list[int]:
        """The cached blocks that a request with this text can start from.

        At least one token is left to compute, because the next one cannot be sampled otherwise.
        With a window, blocks before it are `NULL_BLOCK` and need not be cached.
        """
        if not self._prefix_caching or not blocks.hashes:
            return []
        extend(blocks.hashes, token_ids, self.group.block_size, self._key)
        limit = min((len(token_ids) - 1) // self.group.block_size, len(blocks.hashes))
        if self.group.window:
            return self._match_window(blocks.hashes[:limit])
        found = []
        for block_hash in blocks.hashes[:limit]:
            block = self._pool.find(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def _match_window(self, hashes: list[bytes]) -> list[int]:
        """From the end: the latest run of cached blocks that fills the window."""
        found: list[int] = []  # in reverse
        end = len(hashes)
        for index in range(len(hashes) - 1, -1, -1):
            block = self._pool.find(hashes[index])
            if block is None:
                found, end = [], index
                continue
            found.append(block)
            if index <= self.group.first_needed_block(end * self.group.block_size):
                break
        return [NULL_BLOCK] * (end - len(found)) + found[::-1]

    def num_free_beside(self, cached: list[int]) -> int:
        """Blocks that could be allocated once the `cached` ones are held."""
        held = sum(b != NULL_BLOCK and self._pool.num_holders(b) == 0 for b in cached)
        return self._pool.num_free - held

    def start(self, blocks: RequestBlocks, cached: list[int]) -> None:
        """Give a request its first blocks, those that `match` returned."""
        assert not blocks.block_ids, "the request still holds blocks"
        live = [block for block in cached if block != NULL_BLOCK]
        self._pool.acquire(live)
        blocks.block_ids = list(cached)
        blocks.num_committed = len(cached)
        blocks.num_dropped = len(cached) - len(live)

    def allocate(self, blocks: RequestBlocks, count: int) -> list[int]:
        """Append `count` new blocks to a request; there must be as many free ones."""
        new = self._pool.allocate(count)
        blocks.block_ids += new
        return new

    def commit(self, blocks: RequestBlocks, token_ids: array[int], num_tokens: int) -> None:
        """Offer the full blocks of the first `num_tokens` tokens to the prefix cache.

        Their keys and values must have been computed by work that is enqueued before any work
        that could read them.
        """
        num_full = num_tokens // self.group.block_size
        if not self._prefix_caching or not blocks.hashes or num_full <= blocks.num_committed:
            return
        if num_full > len(blocks.hashes):
            extend(blocks.hashes, token_ids, self.group.block_size, self._key)
        for index in range(max(blocks.num_committed, blocks.num_dropped), num_full):
            self._pool.register(blocks.block_ids[index], blocks.hashes[index])
        blocks.num_committed = num_full

    def drop_passed(self, blocks: RequestBlocks, position: int) -> None:
        """Give back the blocks that no query at `position` or later reads."""
        first = min(self.group.first_needed_block(position), len(blocks.block_ids))
        if first <= blocks.num_dropped:
            return
        passed = blocks.block_ids[blocks.num_dropped : first]
        blocks.block_ids[blocks.num_dropped : first] = [NULL_BLOCK] * len(passed)
        blocks.num_dropped = first
        self._pool.release(passed)

    def free(self, blocks: RequestBlocks) -> None:
        """Give back everything; the end of the text is forgotten before its beginning."""
        self._pool.release(reversed(blocks.block_ids[blocks.num_dropped :]))
        blocks.block_ids = []
        blocks.num_committed = blocks.num_dropped = 0

    def reset(self) -> None:
        """Empty the prefix cache. Requests that run must not commit again: see `withdraw`."""
        self._pool.forget_all()

    def withdraw(self, blocks: RequestBlocks) -> None:
        """Keep this request's present blocks out of the prefix cache from now on."""
        blocks.hashes = []

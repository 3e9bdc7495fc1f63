"""Which blocks a request holds, and which of its text the prefix cache already knows."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pagemill.config.cache import CacheLayout
from pagemill.kvcache.block_pool import BlockPool
from pagemill.kvcache.hashing import extend, keyed_hasher
from pagemill.kvcache.spec import NULL_BLOCK


@dataclass(eq=False, slots=True)
class GroupBlocks:
    """The blocks of one group's tables: `num_tables` of them for each column, column by column.

    The first `num_dropped` columns are behind the window: `NULL_BLOCK`.
    """

    block_ids: list[int] = field(default_factory=list)
    num_dropped: int = 0


@dataclass(eq=False, slots=True)
class CachedPrefix:
    """Blocks that a request can start from; nobody holds them for it yet."""

    num_columns: int
    groups: list[GroupBlocks]


@dataclass(eq=False, slots=True)
class RequestBlocks:
    """A request's blocks, and the hashes of its text's full columns.

    A request without `hashes` takes no part in the prefix cache.
    """

    hashes: list[bytes] = field(default_factory=list)
    groups: list[GroupBlocks] = field(default_factory=list)
    num_columns: int = 0
    num_committed: int = 0  # leading columns that were offered to the prefix cache


class KVCacheManager:
    """Hands out blocks, a column at a time: one for each table.

    All methods take constant time for each block they touch. Freed blocks may be reused at once:
    the device works in order.
    """

    def __init__(
        self, layout: CacheLayout, *, prefix_caching: bool = True, key: bytes = b""
    ) -> None:
        self.layout = layout
        self.has_window = any(group.window for group in layout.groups)
        self._prefix_caching = prefix_caching
        self._hasher = keyed_hasher(key)
        self._block_size, self._num_tables = layout.block_size, layout.num_tables
        self._widths = [group.num_tables for group in layout.groups]
        self._pool = BlockPool(layout.num_blocks)
        # The groups of a text may be cached apart: each has names of its own.
        self._suffixes = [bytes((index,)) if index else b"" for index in range(len(layout.groups))]

    @property
    def num_free_columns(self) -> int:
        return self._pool.num_free // self._num_tables

    @property
    def usage(self) -> float:
        """The share of blocks that requests hold, 0 to 1."""
        return 1 - self._pool.num_free / self._pool.num_usable

    def match(self, blocks: RequestBlocks, token_ids: array[int]) -> CachedPrefix:
        """The cached blocks that a request with this text can start from.

        At least one token is left to compute, because the next one cannot be sampled otherwise.
        Every group must have what a query behind the prefix reads: with a window, columns before
        it need not be cached.
        """
        layout = self.layout
        if not self._prefix_caching or not blocks.hashes:
            return self.no_prefix()
        extend(blocks.hashes, token_ids, layout.block_size, self._hasher)
        end = min((len(token_ids) - 1) // layout.block_size, len(blocks.hashes))
        found = [GroupBlocks() for _ in layout.groups]
        index = num_agreeing = 0
        while num_agreeing < len(found):  # at a shorter end a window may need other blocks
            columns, found[index] = self._find_run(index, blocks.hashes[:end])
            num_agreeing = num_agreeing + 1 if columns == end else 1
            end, index = columns, (index + 1) % len(found)
        return CachedPrefix(end, found)

    def no_prefix(self) -> CachedPrefix:
        """Where a request starts that finds nothing."""
        return CachedPrefix(0, [GroupBlocks() for _ in self.layout.groups])

    def _find_run(self, index: int, hashes: list[bytes]) -> tuple[int, GroupBlocks]:
        """The most leading columns that a group can serve, and its blocks for them."""
        if self.layout.groups[index].window:
            return self._find_window(index, hashes)
        found: list[int] = []
        columns, suffix = 0, self._suffixes[index]
        for block_hash in hashes:
            blocks = self._pool.find(block_hash + suffix)
            if blocks is None:
                break
            found += blocks
            columns += 1
        return columns, GroupBlocks(found)

    def _find_window(self, index: int, hashes: list[bytes]) -> tuple[int, GroupBlocks]:
        """From the end: the latest run of cached columns that fills the window."""
        group, block_size = self.layout.groups[index], self.layout.block_size
        run: list[tuple[int, ...]] = []  # in reverse
        end = len(hashes)
        for column in range(len(hashes) - 1, -1, -1):
            blocks = self._pool.find(hashes[column] + self._suffixes[index])
            if blocks is None:
                run, end = [], column
                continue
            run.append(blocks)
            if column <= group.first_needed(end * block_size) // block_size:
                break
        num_dropped = end - len(run)
        live = [block for blocks in reversed(run) for block in blocks]
        return end, GroupBlocks([NULL_BLOCK] * num_dropped * group.num_tables + live, num_dropped)

    def num_free_beside(self, prefix: CachedPrefix) -> int:
        """Blocks that could be allocated once those of `prefix` are held."""
        held = sum(self._pool.num_holders(block) == 0 for block in self._live(prefix.groups))
        return self._pool.num_free - held

    def num_lacking(self, held: RequestBlocks | CachedPrefix, num_tokens: int) -> int:
        """Blocks still to be allocated, at most, until a text of `num_tokens` is computed."""
        columns, lacking = self.layout.columns_for(num_tokens), 0
        for group, own in zip(self.layout.groups, held.groups, strict=True):
            live = self.layout.live_columns(group, columns - own.num_dropped)
            lacking += group.num_tables * max(0, live - (held.num_columns - own.num_dropped))
        return lacking

    def start(self, blocks: RequestBlocks, prefix: CachedPrefix) -> None:
        """Give a request its first blocks, those that `match` returned."""
        assert not blocks.num_columns, "the request still holds blocks"
        self._pool.acquire(self._live(prefix.groups))
        blocks.groups = prefix.groups
        blocks.num_columns = blocks.num_committed = prefix.num_columns

    def allocate(self, blocks: RequestBlocks, count: int) -> list[int]:
        """Append `count` columns, as many as are free at most; returns them one after the other."""
        return self.allocate_each([blocks], [count])

    def allocate_each(self, holders: Sequence[RequestBlocks], counts: Sequence[int]) -> list[int]:
        """Append so many columns to each; returns them one after the other."""
        new = self._pool.allocate(sum(counts) * self._num_tables)
        end = 0
        for blocks, count in zip(holders, counts, strict=True):
            start, end = end, end + count * self._num_tables
            blocks.num_columns += count
            if self._num_tables == 1:
                blocks.groups[0].block_ids += new[start:end]
            else:
                self._deal(blocks, new[start:end])
        return new

    def _deal(self, blocks: RequestBlocks, new: list[int]) -> None:
        """Append whole columns to the tables of all groups."""
        first = 0
        for group, own in zip(self.layout.groups, blocks.groups, strict=True):
            end = first + group.num_tables
            for column in range(0, len(new), self._num_tables):
                own.block_ids += new[column + first : column + end]
            first = end

    def commit(self, blocks: RequestBlocks, token_ids: array[int], num_tokens: int) -> None:
        """Offer the full columns of the first `num_tokens` tokens to the prefix cache.

        Their keys and values must have been computed by work that is enqueued before any work
        that could read them.
        """
        block_size, hashes = self._block_size, blocks.hashes
        done, num_full = blocks.num_committed, num_tokens // block_size
        if num_full <= done or not hashes or not self._prefix_caching:
            return
        if num_full > len(hashes):
            extend(hashes, token_ids, block_size, self._hasher)
        blocks.num_committed = num_full
        for own, width, suffix in zip(blocks.groups, self._widths, self._suffixes, strict=True):
            first = own.num_dropped if own.num_dropped > done else done
            for column in range(first, num_full):
                ids = own.block_ids[column * width : (column + 1) * width]
                self._pool.register(ids, hashes[column] + suffix)

    def drop_passed(self, blocks: RequestBlocks, position: int) -> None:
        """Give back the blocks that no query at `position` or later reads."""
        if not self.has_window:
            return
        for group, own in zip(self.layout.groups, blocks.groups, strict=True):
            needed = group.first_needed(position) // self.layout.block_size
            first = min(needed, blocks.num_columns)
            if first <= own.num_dropped:
                continue
            passed = slice(own.num_dropped * group.num_tables, first * group.num_tables)
            block_ids = own.block_ids[passed]
            own.block_ids[passed] = [NULL_BLOCK] * len(block_ids)
            own.num_dropped = first
            self._pool.release(block_ids)

    def free(self, blocks: RequestBlocks) -> None:
        """Give back everything; the end of the text is forgotten before its beginning."""
        self._pool.release(self._from_the_end(blocks))
        blocks.groups = []
        blocks.num_columns = blocks.num_committed = 0

    def _from_the_end(self, blocks: RequestBlocks) -> Iterator[int]:
        pairs = list(zip(self.layout.groups, blocks.groups, strict=True))
        for column in range(blocks.num_columns - 1, -1, -1):
            for group, own in pairs:
                if column >= own.num_dropped:
                    first = column * group.num_tables
                    yield from own.block_ids[first : first + group.num_tables]

    def _live(self, groups: list[GroupBlocks]) -> Iterator[int]:
        for group, own in zip(self.layout.groups, groups, strict=True):
            yield from own.block_ids[own.num_dropped * group.num_tables :]

    def reset(self) -> None:
        """Empty the prefix cache. Requests that run must not commit again: see `withdraw`."""
        self._pool.forget_all()

    def withdraw(self, blocks: RequestBlocks) -> None:
        """Keep this request's present blocks out of the prefix cache from now on."""
        blocks.hashes = []

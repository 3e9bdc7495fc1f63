"""The shape of the paged cache, as the side that hands out blocks needs to know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NULL_BLOCK = 0


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that share one block table: a block id names the same tokens in all of them.

    `num_blocks` counts block `NULL_BLOCK`, which belongs to no request: padded rows may write
    there, and table entries that no layer reads any more point there. `window` is the number of
    latest tokens, the query's own included, that any layer of the group reads; 0 means all.
    """

    block_size: int
    num_blocks: int
    window: int = 0

    @property
    def num_usable_blocks(self) -> int:
        return self.num_blocks - 1

    @property
    def num_usable_tokens(self) -> int:
        return self.num_usable_blocks * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def first_needed_block(self, position: int) -> int:
        """The first block that a query at `position`, or any later one, reads."""
        if not self.window:
            return 0
        return max(0, position - self.window + 1) // self.block_size


def shared_window(layer_windows: Sequence[int]) -> int:
    """The window of a group of layers: one layer that reads everything keeps everything (0)."""
    if not layer_windows or 0 in layer_windows:
        return 0
    return max(layer_windows)

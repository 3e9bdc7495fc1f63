"""The shape of the paged cache: block tables, the layers that share them, and what fits.

A *block* holds keys and values of `block_size` tokens in as many layers as the model has in one
table. A *column* is the blocks of all tables for the same tokens. A model whose layers all keep the
same tokens has one table; one that mixes sliding windows with full attention has a table for every
few layers, so that all blocks have the same size and any free one serves any table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagemill.config.engine import EngineConfig

MAX_TABLES = 8  # each costs work in every step


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Tables whose layers read the same tokens: the latest `window`, or all of them (0).

    The window counts the query's own token.
    """

    window: int = 0
    num_tables: int = 1

    def first_needed(self, position: int) -> int:
        """The first position that a query at `position`, or any later one, reads."""
        return max(0, position - self.window + 1) if self.window else 0


ONE_TABLE = (CacheGroup(),)


def step_tokens(config: EngineConfig) -> int:
    """How far a request is ahead of what was retired: a chunk, or two decode steps."""
    return max(config.max_num_batched_tokens, 2 * (1 + config.num_speculative_tokens))


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """How many blocks there are, and how many of them a text takes.

    `num_blocks` counts the null block, which belongs to no request: padded rows may write there,
    and table entries that no layer reads any more point there.
    """

    block_size: int
    num_blocks: int
    groups: tuple[CacheGroup, ...] = ONE_TABLE
    step_tokens: int = 1  # see the function

    @property
    def num_tables(self) -> int:
        return sum(group.num_tables for group in self.groups)

    @property
    def num_usable_blocks(self) -> int:
        return self.num_blocks - 1

    def columns_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def live_columns(self, group: CacheGroup, num_columns: int) -> int:
        """The most columns of a group that a text of `num_columns` holds at any one time."""
        if not group.window:
            return num_columns
        return min(num_columns, self.columns_for(group.window + self.step_tokens) + 2)

    def blocks_for(self, num_columns: int) -> int:
        """The most blocks that a text of `num_columns` holds at any one time."""
        return sum(g.num_tables * self.live_columns(g, num_columns) for g in self.groups)

    def longest_text(self) -> int | None:
        """The tokens of the longest text that fits alone; None when any does."""
        usable = self.num_usable_blocks
        if self.blocks_for(usable + 1) <= usable:
            return None  # each layer has a window
        fits, too_many = 0, usable + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if self.blocks_for(middle) <= usable:
                fits = middle
            else:
                too_many = middle
        return fits * self.block_size

    def num_tokens(self, text_tokens: int) -> int:
        """How many tokens fit in texts of `text_tokens` each."""
        columns = self.columns_for(text_tokens)
        return self.num_usable_blocks * columns * self.block_size // self.blocks_for(columns)


@dataclass(frozen=True, slots=True)
class TablePlan:
    """Which table a layer reads, and which of the block's `layers_per_block` places it has."""

    groups: tuple[CacheGroup, ...]
    tables: tuple[int, ...]  # by layer
    places: tuple[int, ...]  # by layer
    layers_per_block: int


def plan_tables(
    windows: Sequence[int], text_tokens: int, block_size: int, step_tokens: int
) -> TablePlan:
    """The tables of layers with these windows (0: none) that hold most texts of `text_tokens`.

    Layers must have keys and values of one size. Few layers to a block leave few places empty
    but make many tables; at most `MAX_TABLES`.
    """
    kinds: dict[int, list[int]] = {0: []} if 0 in windows else {}
    for layer, window in enumerate(windows):
        kinds.setdefault(window if window < text_tokens else 0, []).append(layer)
    candidates = [_plan(kinds, size) for size in range(1, len(windows) + 1)]
    few = [plan for plan in candidates if sum(g.num_tables for g in plan.groups) <= MAX_TABLES]

    def cost(plan: TablePlan) -> tuple[int, int]:
        layout = CacheLayout(block_size, 1, plan.groups, step_tokens)
        blocks = layout.blocks_for(layout.columns_for(text_tokens))
        return blocks * plan.layers_per_block, layout.num_tables

    return min([*few, one_table(windows)], key=cost)


def one_table(windows: Sequence[int]) -> TablePlan:
    """All layers in one table: one that reads everything keeps everything."""
    window = 0 if 0 in windows else max(windows, default=0)
    layers = range(len(windows))
    return TablePlan((CacheGroup(window),), (0,) * len(windows), tuple(layers), len(windows))


def _plan(kinds: dict[int, list[int]], size: int) -> TablePlan:
    """`size` layers of a kind to each table, in order; a kind's last table may have fewer."""
    groups: list[CacheGroup] = []
    tables: dict[int, int] = {}
    places: dict[int, int] = {}
    num_tables = 0
    for window, layers in kinds.items():
        for index, layer in enumerate(layers):
            tables[layer], places[layer] = num_tables + index // size, index % size
        needed = -(-len(layers) // size)
        groups.append(CacheGroup(window, needed))
        num_tables += needed
    order = range(len(tables))
    return TablePlan(
        tuple(groups), tuple(tables[i] for i in order), tuple(places[i] for i in order), size
    )

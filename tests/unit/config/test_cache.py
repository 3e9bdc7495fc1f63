"""How layers are put into tables, and how much text the blocks then hold."""

from __future__ import annotations

import pytest

from pagemill.config.cache import MAX_TABLES, CacheGroup, CacheLayout, one_table, plan_tables

GEMMA = [*[512] * 5, 0] * 3  # Gemma 3 270M


def test_one_kind_of_layers_has_one_table() -> None:
    for window in (0, 4096):
        plan = plan_tables([window] * 30, 32768, 16, 2048)
        assert plan == one_table([window] * 30)
        assert (plan.groups, plan.layers_per_block) == ((CacheGroup(window),), 30)


@pytest.mark.parametrize(("windows", "window"), [([], 0), ([4, 0, 4], 0), ([4, 4], 4), ([4, 8], 8)])
def test_one_table_keeps_what_any_layer_reads(windows: list[int], window: int) -> None:
    assert one_table(windows).groups == (CacheGroup(window),)


def test_a_window_that_holds_every_text_is_none() -> None:
    assert plan_tables([4096, 0] * 13, 4096, 16, 2048).groups == (CacheGroup(),)


def test_full_layers_and_windows_share_blocks_of_one_size() -> None:
    plan = plan_tables(GEMMA, 32768, 16, 2048)
    assert plan.groups == (CacheGroup(0, 1), CacheGroup(512, 5)) and plan.layers_per_block == 3
    assert [plan.tables[i] for i in (5, 11, 17)] == [0] * 3
    assert sorted(zip(plan.tables, plan.places, strict=True)) == [
        (table, place) for table in range(6) for place in range(3)
    ]


@pytest.mark.parametrize(
    "windows",
    [GEMMA, [*[512] * 5, 0] * 4 + [512] * 2, [128, 0] * 12, [0, *[64] * 40], [0, 64, 256] * 5],
)
def test_every_layer_has_a_place_of_its_own(windows: list[int]) -> None:
    plan = plan_tables(windows, 8192, 16, 512)
    cells = list(zip(plan.tables, plan.places, strict=True))
    assert len(set(cells)) == len(cells) == len(windows)
    assert max(plan.places) < plan.layers_per_block
    tables = [group for group in plan.groups for _ in range(group.num_tables)]
    assert len(tables) <= MAX_TABLES
    for layer, table in enumerate(plan.tables):
        assert tables[table].window == windows[layer]


def test_more_text_fits_when_windows_are_given_back() -> None:
    plan, num_bytes = plan_tables(GEMMA, 32768, 16, 2048), 100_000
    layout = CacheLayout(16, num_bytes // plan.layers_per_block, plan.groups, 2048)
    before = CacheLayout(16, num_bytes // 18)
    assert layout.num_tokens(32768) > 4 * before.num_tokens(32768)
    assert layout.num_tokens(1000) >= 0.99 * before.num_tokens(1000)


@pytest.mark.parametrize("groups", [(CacheGroup(),), (CacheGroup(0, 2), CacheGroup(9, 3))])
@pytest.mark.parametrize("num_blocks", [1, 2, 6, 7, 40, 41, 1000])
def test_the_longest_text_is_the_longest_that_fits(
    groups: tuple[CacheGroup, ...], num_blocks: int
) -> None:
    layout = CacheLayout(4, num_blocks, groups, step_tokens=8)
    longest = layout.longest_text()
    assert longest is not None
    assert layout.blocks_for(longest // 4) <= num_blocks - 1 < layout.blocks_for(longest // 4 + 1)


def test_any_text_fits_where_every_layer_has_a_window() -> None:
    assert CacheLayout(4, 9, (CacheGroup(9),), step_tokens=8).longest_text() is None
    assert CacheLayout(4, 5, (CacheGroup(9),), step_tokens=8).longest_text() == 16

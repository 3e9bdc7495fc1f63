from __future__ import annotations

import msgspec
import pytest
import torch

from pagemill.config.cache import CacheGroup, CacheLayout
from pagemill.config.engine import EngineConfig
from pagemill.device.cpu import CpuDevice
from pagemill.errors import ModelLoadError
from pagemill.models.base import KVCacheSpec
from pagemill.runner.memory import (
    allocate_cache,
    block_bytes,
    cache_budget,
    fit_cache,
    largest_batch,
)

CONFIG = EngineConfig(
    model="m",
    served_model_names=("m",),
    device="cpu",
    dtype="float32",
    max_model_len=1000,
    max_num_seqs=7,
    max_num_batched_tokens=64,
)
SPECS = [KVCacheSpec(2, 8), KVCacheSpec(1, 16)]
LAYOUT = CacheLayout(16, 1)


def config(**changes: object) -> EngineConfig:
    return msgspec.structs.replace(CONFIG, **changes)


def test_a_block_holds_keys_and_values_of_all_layers() -> None:
    assert block_bytes(SPECS, 16, torch.bfloat16) == 2 * 2 * 16 * (2 * 8 + 1 * 16)
    with_scales = 2 * (8 + 4) + 1 * (16 + 4)
    assert block_bytes(SPECS, 16, torch.int8) == 2 * 16 * with_scales
    pages = allocate_cache(CpuDevice(), SPECS, 3, 16, torch.int8)
    assert sum(2 * layer.k.nbytes for layer in pages) == 3 * 2 * 16 * with_scales


def test_the_context_is_kept_when_it_fits() -> None:
    fit = fit_cache(CONFIG, 64 * 100, 100, LAYOUT)
    assert (fit.num_blocks, fit.num_bytes, fit.max_model_len) == (64, 6400, 1000)
    assert fit.remark == ""


def test_the_context_shrinks_to_what_fits_and_says_so() -> None:
    fit = fit_cache(CONFIG, 11 * 100 + 99, 100, LAYOUT)
    assert (fit.num_blocks, fit.max_model_len) == (11, 160)
    assert "1000 to 160" in fit.remark


@pytest.mark.parametrize(
    ("changes", "budget"),
    [({"max_model_len_fixed": True}, 1100), ({}, 150), ({}, 0), ({}, -5000)],
)
def test_what_cannot_fit_is_an_error_that_says_what_to_do(
    changes: dict[str, object], budget: int
) -> None:
    with pytest.raises(ModelLoadError, match="--max-model-len") as error:
        fit_cache(config(**changes), budget, 100, LAYOUT)
    assert "\n" not in str(error.value)


class RoomyDevice(CpuDevice):
    def free_memory(self) -> int:
        return 1000


class FakeCuda(RoomyDevice):
    type = "cuda"

    def info(self):  # type: ignore[no-untyped-def]
        return super().info().__class__("cuda", "", 5000, 1000, 1, True)


def test_the_budget_is_what_was_asked_for_or_what_is_free() -> None:
    assert cache_budget(config(kv_cache_bytes=300), RoomyDevice(), 0) == 300
    assert cache_budget(config(kv_cache_bytes=3000), RoomyDevice(), 0) == 900
    assert cache_budget(config(kv_cache_bytes=3000), FakeCuda(), 0) == 1000
    assert cache_budget(config(memory_utilization=0.9), FakeCuda(), 200) == 4500 - 4000 - 200


def test_pages_are_zero_and_aligned() -> None:
    layers = allocate_cache(CpuDevice(), SPECS, 5, 4, torch.bfloat16)
    assert [tuple(layer.k.shape) for layer in layers] == [(5, 2, 4, 8), (5, 1, 4, 16)]
    for layer in layers:
        for pages in (layer.k, layer.v):
            assert not pages.any() and pages.data_ptr() % 64 == 0
    assert layers[0].k.data_ptr() != layers[0].v.data_ptr()


@pytest.mark.parametrize("changes", [{}, {"max_model_len": 3}, {"max_num_seqs": 100}])
def test_the_largest_batch_fills_the_token_budget(changes: dict[str, int]) -> None:
    settings = config(**changes)
    batch = largest_batch(settings)
    assert batch.num_tokens == batch.num_query.sum() == len(batch.prompt_tokens)
    assert batch.num_tokens == min(64, batch.num_rows * settings.max_model_len)
    assert batch.num_query.min() >= 1 and batch.max_query_len <= settings.max_model_len
    assert [a.slot for a in batch.admitted] == batch.slots.tolist()


def test_a_window_lets_a_longer_context_fit() -> None:
    groups = (CacheGroup(), CacheGroup(32, num_tables=3))
    fit = fit_cache(CONFIG, 100 * 100, 100, CacheLayout(16, 1, groups, step_tokens=64))
    assert fit.max_model_len == 1000 and fit.num_blocks < 4 * 1000 / 16
    fit = fit_cache(CONFIG, 60 * 100, 100, CacheLayout(16, 1, groups, step_tokens=64))
    assert fit.max_model_len == (59 - 3 * 8) * 16

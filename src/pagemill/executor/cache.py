"""How a model's layers share the paged cache, and the cache's memory."""

from __future__ import annotations

import torch

from pagemill.attention.base import LayerCache
from pagemill.config.cache import CacheLayout, TablePlan, one_table, plan_tables, step_tokens
from pagemill.config.engine import EngineConfig
from pagemill.device.base import Device
from pagemill.models.base import AnyModel, KVCacheSpec
from pagemill.runner.memory import CacheFit, allocate_cache, block_bytes, fit_cache


class CachePlan:
    """The tables of one model under one configuration."""

    def __init__(self, config: EngineConfig, model: AnyModel, dtype: torch.dtype) -> None:
        self._config = config
        self._dtype = dtype
        specs = model.kv_cache_specs()
        self.tables = _plan_tables(config, specs)
        self._specs = [
            specs[self.tables.places.index(place)] for place in range(self.tables.layers_per_block)
        ]

    @property
    def layer_tables(self) -> tuple[int, ...]:
        """The table of each layer; empty when there is only one."""
        return self.tables.tables if max(self.tables.tables, default=0) else ()

    def layout(self, num_blocks: int) -> CacheLayout:
        """For the side that hands out blocks."""
        config = self._config
        return CacheLayout(config.block_size, num_blocks, self.tables.groups, step_tokens(config))

    def fit(self, budget: int) -> CacheFit:
        """See `fit_cache`."""
        per_block = block_bytes(self._specs, self._config.block_size, self._dtype)
        return fit_cache(self._config, budget, per_block, self.layout(1))

    def allocate(self, device: Device, num_blocks: int) -> list[LayerCache]:
        """The pages of each layer: layers with the same place in different tables share them."""
        block_size = self._config.block_size
        pages = allocate_cache(device, self._specs, num_blocks, block_size, self._dtype)
        return [pages[place] for place in self.tables.places]


def _plan_tables(config: EngineConfig, specs: list[KVCacheSpec]) -> TablePlan:
    windows = [spec.sliding_window for spec in specs]
    sizes = {(spec.num_kv_heads, spec.head_dim) for spec in specs}
    if len(sizes) > 1 or config.pooling is not None:  # texts that are pooled stay a few steps
        return one_table(windows)
    return plan_tables(windows, config.max_model_len, config.block_size, step_tokens(config))

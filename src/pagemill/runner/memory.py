"""How many blocks the KV cache gets, and their memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pagemill.attention.base import LayerCache
from pagemill.config.cache import CacheLayout
from pagemill.config.engine import EngineConfig
from pagemill.device.base import Device
from pagemill.errors import ModelLoadError
from pagemill.models.base import KVCacheSpec
from pagemill.ops.int8_cache import row_size
from pagemill.params import SamplingParams
from pagemill.scheduler.batch import Admission, Batch, NewBlocks

_GIB = 2**30
_CPU_SHARE = 0.9  # of the free memory, left to the cache and the activations beside it
_NUM_NULL_BLOCKS = 1  # block 0 belongs to no request


@dataclass(frozen=True, slots=True)
class CacheFit:
    """`num_blocks` includes the null block; `remark` is for the user, "" when all is as asked."""

    num_blocks: int
    num_bytes: int
    max_model_len: int
    remark: str = ""


def block_bytes(specs: Sequence[KVCacheSpec], block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block, keys and values of the layers that share it."""
    elements = sum(2 * s.num_kv_heads * row_size(s.head_dim, dtype) for s in specs)
    return elements * block_size * dtype.itemsize


def cache_budget(config: EngineConfig, device: Device, activation_bytes: int) -> int:
    """Bytes that the cache may take, with the weights already in memory."""
    free = device.free_memory()
    if device.type == "cpu":
        free = int(free * _CPU_SHARE)
        if not config.kv_cache_bytes:
            used = device.info().total_memory - device.free_memory()
            free = min(free, int(device.info().total_memory * config.memory_utilization) - used)
    elif not config.kv_cache_bytes:
        total = device.info().total_memory
        return int(total * config.memory_utilization) - (total - free) - activation_bytes
    return min(free, config.kv_cache_bytes) if config.kv_cache_bytes else free


def fit_cache(
    config: EngineConfig, budget: int, bytes_per_block: int, layout: CacheLayout
) -> CacheFit:
    """As many blocks as the budget holds, and the context length that they can hold.

    `layout` says how texts use blocks; its own `num_blocks` does not matter. Raises ModelLoadError
    when not even a short context fits, or not the length that was asked for.
    """
    if not bytes_per_block:  # nothing is kept, so blocks only count requests
        return CacheFit(2 * config.max_num_seqs + _NUM_NULL_BLOCKS, 0, config.max_model_len)
    num_blocks = max(0, budget) // bytes_per_block
    longest = replace(layout, num_blocks=max(num_blocks, _NUM_NULL_BLOCKS)).longest_text()
    fitting = config.max_model_len if longest is None else min(config.max_model_len, longest)
    blocks = layout.blocks_for(layout.columns_for(config.max_model_len)) + _NUM_NULL_BLOCKS
    needed = blocks * bytes_per_block / _GIB
    room = f"{max(0, budget) / _GIB:.2f} GiB"
    if fitting < config.block_size or (
        config.max_model_len_fixed and fitting < config.max_model_len
    ):
        raise ModelLoadError(
            f"a context of {config.max_model_len} tokens needs {needed:.2f} GiB of KV cache, but "
            f"there is room for {room}: lower --max-model-len, raise --kv-cache-bytes or "
            "--memory-utilization, or free memory"
        )
    remark = ""
    if fitting < config.max_model_len:
        remark = (
            f"context length lowered from {config.max_model_len} to {fitting} tokens, which is "
            f"what a KV cache of {room} holds; --kv-cache-bytes changes its size"
        )
    return CacheFit(num_blocks, num_blocks * bytes_per_block, fitting, remark)


def allocate_cache(
    device: Device,
    specs: Sequence[KVCacheSpec],
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
) -> list[LayerCache]:
    """Zeroed pages for every one of `specs`.

    Raises ModelLoadError when the device has too little memory.
    """
    try:
        return [
            LayerCache(*(_pages(device, spec, num_blocks, block_size, dtype) for _ in "kv"))
            for spec in specs
        ]
    except (MemoryError, torch.OutOfMemoryError):
        raise ModelLoadError(
            "the KV cache does not fit into memory; lower --memory-utilization, "
            "--kv-cache-bytes or --max-model-len"
        ) from None


def _pages(
    device: Device, spec: KVCacheSpec, num_blocks: int, block_size: int, dtype: torch.dtype
) -> torch.Tensor:
    shape = (num_blocks, spec.num_kv_heads, block_size, row_size(spec.head_dim, dtype))
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    return device.allocate(num_bytes).view(dtype).view(shape)


def largest_batch(config: EngineConfig) -> Batch:
    """A step as large as the settings allow, all of whose tokens are in the null block.

    As few rows as possible are long and the others have one token, so that the kernels of prompts
    and of generating rows beside them are all compiled before the first request.
    """
    num_rows = min(config.max_num_seqs, config.max_num_batched_tokens)
    num_tokens = min(config.max_num_batched_tokens, num_rows * config.max_model_len)
    longer = config.max_model_len - 1
    left = num_tokens - num_rows - np.arange(num_rows) * longer
    num_query = (1 + np.clip(left, 0, longer)).astype(np.int32)
    return dummy_batch(num_query, SamplingParams(temperature=1.0, top_p=0.9))


def dummy_batch(
    num_query: NDArray[np.int32],
    params: SamplingParams,
    *,
    resident: bool = False,
    num_drafts: int = 0,
) -> Batch:
    """Rows with `num_query` tokens each, all of them in the null block.

    Their requests are new, with prompts of so many tokens, unless they are `resident`; then each
    row computes its last token and `num_drafts` drafts.
    """
    num_rows, num_tokens = len(num_query), int(num_query.sum())
    nothing, text = np.zeros(0, np.int32), np.zeros(1, np.int32)
    return Batch(
        slots=np.arange(num_rows, dtype=np.int32),
        num_query=num_query,
        num_drafts=np.full(num_rows, num_drafts, np.int32),
        start=np.zeros(num_rows, np.int32),
        samples=np.ones(num_rows, np.bool_),
        resident=np.full(num_rows, resident),
        prompt_tokens=np.zeros(0 if resident else num_tokens, np.int32),
        new_blocks=NewBlocks(nothing, nothing, nothing),
        admitted=[
            Admission(slot, "", params, slot, nothing, 0, text, 1) for slot in range(num_rows)
        ],
        num_tokens=num_tokens,
        max_query_len=int(num_query.max()),
        max_seq_len=int(num_query.max()),
    )

"""Tiles fit into the shared memory of cards that have little; sizes as Triton 3 compiles them.

Each stage but one of a loop holds the tiles that are loaded ahead, beside those that stay.
"""

from __future__ import annotations

import pytest
import torch

from pagemill.ops.triton.batch_linear import batch_config
from pagemill.ops.triton.launch import SMALL_SHARED
from pagemill.ops.triton.packed_attention import packed_config
from pagemill.ops.triton.split_attention import MAX_ROWS, SplitPlan, fitting_block_n

ITEM = 2  # bytes of bfloat16


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("out_features", [512, 4096, 14336, 128_256])
@pytest.mark.parametrize("sms", [58, 128, 170])
def test_products_of_few_tokens(gated: bool, out_features: int, sms: int) -> None:
    for tokens in range(2, 17):
        config = batch_config(tokens, out_features, 4096, sms, gated, small_shared=True)
        rows = config.block_n * (2 if gated else 1) + config.block_m
        assert (config.num_stages - 1) * rows * config.block_k * ITEM <= SMALL_SHARED


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_attention(head_dim: int) -> None:
    packed = packed_config(head_dim, torch.bfloat16, hopper=False, small_shared=True)
    plan, rows = SplitPlan(4, 512), (8, 32, MAX_ROWS)
    split = [(count, fitting_block_n(plan, count, head_dim, True)) for count in rows]
    for queries, block_n in [(packed.block_m, packed.block_n), *split]:
        # Queries and weights, keys and values; the table's entries take the other stage.
        assert (queries * (head_dim + block_n) + 2 * block_n * head_dim) * ITEM <= SMALL_SHARED

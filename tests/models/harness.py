"""Runs a model on hand-made batches: a paged cache with shuffled blocks, rows of any mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pagemill.attention.base import AttentionBackend, ForwardBatch, LayerCache
from pagemill.layers.base import BuildContext
from pagemill.models.base import KVCacheSpec, Model
from pagemill.ops.base import Ops
from pagemill.ops.reference import ReferenceOps
from pagemill.quant.unquantized import Unquantized


def build_context(
    dtype: torch.dtype = torch.float32, device: str = "cpu", ops: Ops | None = None
) -> BuildContext:
    ops = ops or ReferenceOps()
    return BuildContext(torch.device(device), dtype, ops, Unquantized(ops))


def empty_cache(
    specs: Sequence[KVCacheSpec], num_blocks: int, block_size: int, dtype: torch.dtype, device: str
) -> list[LayerCache]:
    """Pages of zeros for every layer."""
    return [
        LayerCache(
            *torch.zeros(
                (2, num_blocks, s.num_kv_heads, block_size, s.head_dim), dtype=dtype, device=device
            )
        )
        for s in specs
    ]


def make_batch(
    rows: Sequence[tuple[int, Sequence[int]]],  # (tokens already in the cache, new token ids)
    block_table: Tensor,  # [n, max_blocks] int32
    kv_cache: list[LayerCache],
    attention: AttentionBackend | None,
) -> ForwardBatch:
    """The step that computes each row's new tokens. Every token's logits are wanted."""
    block_size = kv_cache[0].k.shape[2]
    device = kv_cache[0].k.device
    lens = np.array([len(ids) for _, ids in rows], dtype=np.int32)
    starts = np.concatenate(([0], np.cumsum(lens))).astype(np.int32)
    seq_lens = np.array([done + len(ids) for done, ids in rows], dtype=np.int32)
    positions = np.concatenate([np.arange(done, done + len(ids)) for done, ids in rows])
    row_of = np.repeat(np.arange(len(rows)), lens)
    blocks = block_table.cpu().numpy()[row_of, positions // block_size].astype(np.int64)
    slots = blocks * block_size + positions % block_size
    batch = ForwardBatch(
        input_ids=torch.tensor([t for _, ids in rows for t in ids], device=device),
        positions=torch.from_numpy(positions).to(device),
        slot_mapping=torch.from_numpy(slots).to(device),
        query_start=torch.from_numpy(starts).to(device),
        seq_lens=torch.from_numpy(seq_lens).to(device),
        block_table=block_table.to(device),
        logits_rows=torch.arange(len(positions), device=device),
        num_seqs=len(rows),
        num_tokens=len(positions),
        max_query_len=int(lens.max()),
        max_seq_len=int(seq_lens.max()),
        host_query_start=starts,
        host_seq_lens=seq_lens,
        kv_cache=kv_cache,
        attention=attention,
    )
    if attention is not None:
        batch.plan = attention.plan(batch)
    return batch


@dataclass
class Row:
    done: int
    blocks: Tensor  # [max_blocks] int32


class ModelHarness:
    """A model, its cache and the rows that live in it."""

    def __init__(
        self,
        model: Model,
        attention: AttentionBackend,
        *,
        max_rows: int = 4,
        max_len: int = 96,
        block_size: int = 4,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        self.model = model
        self.attention = attention
        per_row = -(-max_len // block_size)
        num_blocks = per_row * max_rows
        self.kv_cache = empty_cache(model.kv_cache_specs(), num_blocks, block_size, dtype, device)
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed))
        self.rows = [Row(0, blocks) for blocks in order.int().view(max_rows, per_row)]

    def batch(self, tokens: dict[int, Sequence[int]]) -> ForwardBatch:
        """The step that feeds tokens to the named rows."""
        rows = [self.rows[i] for i in tokens]
        return make_batch(
            [(row.done, ids) for row, ids in zip(rows, tokens.values(), strict=True)],
            torch.stack([row.blocks for row in rows]),
            self.kv_cache,
            self.attention,
        )

    @torch.inference_mode()
    def step(self, tokens: dict[int, Sequence[int]]) -> dict[int, Tensor]:
        """Run that step; the rows' logits on the CPU, [len, vocab] each."""
        batch = self.batch(tokens)
        hidden = self.model.forward(batch)
        logits = self.model.compute_logits(hidden[batch.logits_rows]).cpu()
        for i, ids in tokens.items():
            self.rows[i].done += len(ids)
        lens = [len(ids) for ids in tokens.values()]
        return dict(zip(tokens, logits.split(lens), strict=True))

    def whole(self, ids: Sequence[int], row: int = 0) -> Tensor:
        """Logits of a text computed in one step, [len, vocab]."""
        return self.step({row: ids})[row]

    def chunked(self, ids: Sequence[int], size: int, row: int = 0) -> Tensor:
        """The same in steps of `size` tokens."""
        parts = [ids[i : i + size] for i in range(0, len(ids), size)]
        return torch.cat([self.step({row: part})[row] for part in parts])

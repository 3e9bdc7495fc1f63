"""A runner around a model that reads every sequence back through the cache, driven by hand."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pagemill.attention.base import AttentionBackend, AttentionSpec, ForwardBatch
from pagemill.config.engine import EngineConfig
from pagemill.device.select import select_device
from pagemill.executor.base import StepResult
from pagemill.models.base import KVCacheSpec, Model
from pagemill.params import SamplingParams
from pagemill.runner.memory import allocate_cache
from pagemill.runner.results import PendingStep
from pagemill.runner.runner import ModelRunner
from pagemill.scheduler.batch import Admission, Batch, NewBlocks
from pagemill.speculative.base import Speculator

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
VOCAB = 61
BLOCK_SIZE = 4
NUM_SLOTS = 5
MAX_LEN = 96
BLOCKS_PER_SLOT = MAX_LEN // BLOCK_SIZE + 2
NO_TOKENS = np.zeros(0, np.int32)
GREEDY = SamplingParams(temperature=0.0)


def logits_after(text: Sequence[int]) -> Tensor:
    """What the model says follows `text`, [vocab]: a hash of all of it."""
    key = zlib.crc32(np.array(text, np.int32).tobytes()) % 100_003
    return _logits_of_keys(torch.tensor([[float(key)]]))[0]


def _logits_of_keys(keys: Tensor) -> Tensor:
    columns = torch.arange(1, VOCAB + 1, dtype=torch.float64)
    return (torch.sin(keys.cpu().double() * columns * 0.37) * 4).float()


def greedy_reference(text: Sequence[int], num_tokens: int) -> list[int]:
    text = list(text)
    for _ in range(num_tokens):
        text.append(int(logits_after(text).argmax()))
    return text[-num_tokens:]


class CacheModel:
    """Implements `Model`: writes token ids into the cache, hashes what the block table leads to."""

    vocab_size = VOCAB

    def forward(self, batch: ForwardBatch) -> Tensor:
        cells = batch.kv_cache[0].k.view(-1)
        cells[batch.slot_mapping] = batch.input_ids.float()
        starts, table = batch.query_start.tolist(), batch.block_table.tolist()
        keys = torch.zeros(batch.num_tokens, 1)
        for row, length in enumerate(batch.seq_lens.tolist()):
            places = [table[row][p // BLOCK_SIZE] * BLOCK_SIZE for p in range(length)]
            places = [place + p % BLOCK_SIZE for p, place in enumerate(places)]
            text = cells[torch.tensor(places, dtype=torch.int64)].int().cpu().numpy()
            first = length - (starts[row + 1] - starts[row])
            for i, token in enumerate(range(starts[row], starts[row + 1])):
                assert batch.positions[token] == first + i
                keys[token] = zlib.crc32(text[: first + i + 1].tobytes()) % 100_003
        return keys.to(batch.positions.device)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return _logits_of_keys(hidden).to(hidden.device)

    def load_weights(self, weights: Any) -> None:
        raise AssertionError("a test gives no weights")

    def attention_layers(self) -> list[AttentionSpec]:
        return [AttentionSpec(0, 1, 1, 1, 1.0)]

    def kv_cache_specs(self) -> list[KVCacheSpec]:
        return [KVCacheSpec(1, 1)]


class TwoTableModel(CacheModel):
    """Keeps the text twice, by the block tables of two layers, and reads both."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        own, other = batch.of_layer(0), batch.of_layer(1)
        assert own is batch and not torch.equal(own.slot_mapping, other.slot_mapping)
        keys = super().forward(own)
        assert torch.equal(keys, super().forward(other))
        return keys


class NoAttention:
    """Implements `AttentionBackend` for a model without any."""

    name = "none"

    def plan(self, batch: ForwardBatch) -> None:
        assert batch.host_query_start is not None
        assert batch.host_query_start.tolist() == batch.query_start.tolist()
        assert batch.host_seq_lens is not None
        assert (batch.host_seq_lens >= batch.seq_lens.cpu().numpy()).all()
        assert batch.max_seq_len >= int(batch.seq_lens.max())

    def run(self, spec: AttentionSpec, q: Tensor, batch: ForwardBatch) -> Tensor:
        raise AssertionError("the model has no attention")


@dataclass
class Row:
    """A row of a step. `num_known` tokens of the text; 0: the slot's last token and drafts."""

    slot: int
    num_known: int = 0
    num_drafts: int = 0
    samples: bool = True
    grammar: bool = False


class Driver:
    """Builds batches as a scheduler would, with upper bounds for what it cannot know yet."""

    def __init__(
        self,
        device: str = "cpu",
        speculator: Speculator | None = None,
        *,
        model: Model | None = None,
        attention: AttentionBackend | None = None,
        deterministic: bool = False,
        dtype: torch.dtype = torch.float32,
        num_tables: int = 1,
    ) -> None:
        self.config = EngineConfig(
            model="",
            served_model_names=("m",),
            device=device,
            dtype="float32",
            max_model_len=MAX_LEN,
            max_num_seqs=NUM_SLOTS,
            max_num_batched_tokens=16,
            block_size=BLOCK_SIZE,
            deterministic=deterministic,
        )
        self.device = select_device(device)
        model = model or CacheModel()
        cache = allocate_cache(
            self.device,
            model.kv_cache_specs(),
            1 + NUM_SLOTS * BLOCKS_PER_SLOT * num_tables,
            BLOCK_SIZE,
            dtype,
        )
        self.runner = ModelRunner(
            self.config,
            model,
            self.device,
            attention or NoAttention(),
            cache,
            speculator,
            layer_tables=tuple(range(num_tables)),
        )
        shape = NUM_SLOTS, BLOCKS_PER_SLOT, num_tables
        self.blocks = 1 + np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape)
        self.texts: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self._admitted: list[Admission] = []
        self._num_blocks: dict[int, int] = {}
        self._params: dict[int, SamplingParams] = {}

    def admit(
        self,
        slot: int,
        text: Sequence[int],
        params: SamplingParams = GREEDY,
        *,
        seed: int = 0,
        prompt_len: int = 0,
        num_computed: int = 0,
        block_ids: Sequence[Sequence[int]] = (),
    ) -> None:
        """The slot's request from the next step on."""
        self.texts[slot], self.computed[slot] = list(text), num_computed
        self._num_blocks[slot], self._params[slot] = len(block_ids), params
        self._admitted.append(
            Admission(
                slot,
                f"r{slot}",
                params,
                seed,
                np.array(block_ids, np.int32).reshape(-1, self.blocks.shape[2]),
                num_computed,
                np.array(text, np.int32),
                prompt_len or len(text),
            )
        )

    def launch(self, *rows: Row, bitmask: Any = None) -> PendingStep:
        batch = self.batch(rows)
        self.runner.forward(batch)
        return self.runner.sample(batch, bitmask)

    def step(self, *rows: Row, bitmask: Any = None) -> StepResult:
        return self.launch(*rows, bitmask=bitmask).wait()

    def tokens(self, *rows: Row) -> list[list[int]]:
        """What each row of a step yields."""
        result = self.step(*rows)
        return [t[:n].tolist() for t, n in zip(result.token_ids, result.num_tokens, strict=True)]

    def batch(self, rows: Sequence[Row]) -> Batch:
        num_query = np.array([r.num_known or 1 + r.num_drafts for r in rows], np.int32)
        start = np.array([self.computed[r.slot] for r in rows], np.int32)
        known: list[int] = []
        for row, first, count in zip(rows, start, num_query, strict=True):
            known += self.texts[row.slot][first : first + row.num_known]
            self.computed[row.slot] = int(first + count)
        asked = [self._prompt_logprobs(row) for row in rows]
        grammar_rows = [i for i, r in enumerate(rows) if r.grammar]
        admitted, self._admitted = self._admitted, []
        return Batch(
            slots=np.array([r.slot for r in rows], np.int32),
            num_query=num_query,
            num_drafts=np.array([r.num_drafts for r in rows], np.int32),
            start=start,
            samples=np.array([r.samples for r in rows]),
            resident=np.array([r.num_known == 0 for r in rows]),
            prompt_tokens=np.array(known, np.int32),
            new_blocks=self._new_blocks(rows),
            admitted=admitted,
            grammar_rows=np.array(grammar_rows, np.int32) if grammar_rows else None,
            prompt_logprobs=np.array(asked, np.int32) if max(asked) >= 0 else None,
            num_tokens=int(num_query.sum()),
            max_query_len=int(num_query.max()),
            max_seq_len=int((start + num_query).max()),
        )

    def rejected(self, slot: int, count: int) -> None:
        """The host learns that so many drafts were not accepted."""
        self.computed[slot] -= count

    def _prompt_logprobs(self, row: Row) -> int:
        if not row.num_known:
            return -1
        asked = self._params[row.slot].prompt_logprobs
        return -1 if asked is None else asked

    def _new_blocks(self, rows: Sequence[Row]) -> NewBlocks:
        cells = []
        for row in rows:
            needed = -(-self.computed[row.slot] // BLOCK_SIZE)
            added = range(self._num_blocks[row.slot], needed)
            cells += [(row.slot, index, *self.blocks[row.slot, index]) for index in added]
            self._num_blocks[row.slot] = max(needed, self._num_blocks[row.slot])
        columns = np.array(cells, np.int32).reshape(-1, 2 + self.blocks.shape[2])
        return NewBlocks(columns[:, 0], columns[:, 1], columns[:, 2:])

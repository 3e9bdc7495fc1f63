"""A device without a model: it runs late, in order, and reads every sequence through its blocks.

The next token is a function of the whole sequence, which the device reads back through the block
table at the moment it works. So a block reused too early, a wrong position, a missing token or a
wrong rollback changes a token, and a comparison with `next_token` on the plain text fails.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from pagemill.config.cache import CacheGroup
from pagemill.engine.messages import EngineInfo
from pagemill.params import SamplingParams
from pagemill.scheduler.batch import Admission, Batch
from pagemill.scheduler.result import PromptLogprobs, RowLogprobs, StepResult

VOCAB_SIZE = 64
MASK_WIDTH = VOCAB_SIZE // 32
EMPTY = -1


def next_token(
    tokens: Sequence[int], windows: Sequence[int] = (0,), allowed: int | None = None
) -> int:
    """The token that follows: a hash of what each table reads, its window's latest tokens (0:
    all), moved up to the next one whose bit is set in `allowed`."""
    return token_of([tokens] * len(windows), windows, allowed)


def token_of(
    texts: Sequence[Sequence[int]], windows: Sequence[int], allowed: int | None = None
) -> int:
    """The same, where every table has a text of its own."""
    read = b"".join(bytes(text[-w:] if w else text) for text, w in zip(texts, windows, strict=True))
    token = crc32(read) % VOCAB_SIZE
    while allowed is not None and not allowed >> token & 1:
        token = (token + 1) % VOCAB_SIZE
    return token


@dataclass
class Slot:
    """What the device keeps for a resident request."""

    params: SamplingParams
    known: list[int]
    prompt_len: int
    tables: list[list[int]]
    length: int  # tokens whose keys and values are in the cache
    last_token: int = EMPTY
    drafts: list[int] = field(default_factory=list)


@dataclass
class Pending:
    """A result that exists once the stream has run up to it."""

    stream: Stream
    position: int
    result: StepResult | None = None

    def wait(self) -> StepResult:
        self.stream.run_until(self.position)
        assert self.result is not None
        return self.result


class Stream:
    """Work in the order in which it was enqueued, done when someone looks."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], None]] = deque()
        self._num_done = 0

    @property
    def end(self) -> int:
        return self._num_done + len(self._queue)

    def enqueue(self, work: Callable[[], None]) -> None:
        self._queue.append(work)

    def run_until(self, position: int) -> None:
        while self._num_done < position:
            self._queue.popleft()()
            self._num_done += 1

    def run_some(self, rng: random.Random) -> None:
        """As much as chance allows."""
        self.run_until(rng.randint(self._num_done, self.end))


class FakeExecutor:
    """An `Executor`. `draft_accuracy` is the chance that one drafted token is right.

    `step_seconds` makes every step take time, for tests and benchmarks with many streams.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 32,
        max_model_len: int = 256,
        num_drafts: int = 0,
        draft_accuracy: float = 0.6,
        groups: Sequence[CacheGroup] = (CacheGroup(),),
        seed: int = 0,
        step_seconds: float = 0.0,
    ) -> None:
        self.info = EngineInfo(
            max_model_len=max_model_len,
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            cache_groups=tuple(groups),
        )
        self.stream = Stream()
        self.batches: list[Batch] = []  # every batch it was given
        self._num_drafts = num_drafts
        self._draft_accuracy = draft_accuracy
        self._windows = [g.window for g in groups for _ in range(g.num_tables)]  # by table
        self._rng = random.Random(seed)
        self._step_seconds = step_seconds
        self._block_size = block_size
        self._cache = [EMPTY] * (num_blocks * block_size)  # the token of each position
        self._context = [0] * (num_blocks * block_size)  # CRC of the text up to it
        self._slots: dict[int, Slot] = {}

    def forward(self, batch: Batch) -> None:
        check_batch(batch, self.info)
        self.batches.append(batch)
        self.stream.enqueue(lambda: self._forward(batch))

    def sample(self, batch: Batch, bitmask: NDArray[np.int32] | None = None) -> Pending:
        assert batch.needs_grammar == (bitmask is not None)
        if bitmask is not None:
            assert bitmask.shape == (len(batch.grammar_rows), MASK_WIDTH)
        pending = Pending(self.stream, self.stream.end + 1)

        def work() -> None:
            pending.result = self._sample(batch, bitmask)

        self.stream.enqueue(work)
        return pending

    def use_idle_time(self) -> bool:
        return False

    def control(self, method: str, args: list[Any]) -> Any:
        return [method, *args]

    def shutdown(self) -> None:
        self.stream.run_until(self.stream.end)

    def _forward(self, batch: Batch) -> None:
        if self._step_seconds:
            time.sleep(self._step_seconds)
        for admission in batch.admitted:
            self._slots[admission.slot] = _slot_of(admission, len(self._windows))
        self._extend_tables(batch)
        for row, tokens in enumerate(self._query_tokens(batch)):
            slot = self._slots[int(batch.slots[row])]
            start = int(batch.start[row])
            assert slot.length <= start if batch.resident[row] else slot.length == start
            for index in range(len(slot.tables)):
                self._write(slot, index, tokens)

    def _write(self, slot: Slot, index: int, tokens: list[int]) -> None:
        """Like keys and values, what is written depends on everything before it, and on the
        layers: another table's blocks do not serve."""
        table, length = slot.tables[index], slot.length
        before = self._address(table, length - 1) if length else None
        context = 0 if before is None else self._context[before]
        for position, token in enumerate(tokens, length):
            address = self._address(table, position)
            context = crc32(bytes([token]), context)
            self._cache[address] = token + index * VOCAB_SIZE
            self._context[address] = context

    def _extend_tables(self, batch: Batch) -> None:
        new = batch.new_blocks
        for slot_id, index, blocks in zip(
            new.slots.tolist(), new.index.tolist(), new.block_ids.tolist(), strict=True
        ):
            for table, block in zip(self._slots[slot_id].tables, blocks, strict=True):
                assert index == len(table), "blocks are appended in order"
                table.append(block)

    def _query_tokens(self, batch: Batch) -> list[list[int]]:
        known = batch.prompt_tokens.tolist()
        query = []
        for row in range(batch.num_rows):
            slot, count = self._slots[int(batch.slots[row])], int(batch.num_query[row])
            if batch.resident[row]:
                query.append([slot.last_token, *slot.drafts[: count - 1]])
            else:
                query.append(known[:count])
                known = known[count:]
            assert len(query[-1]) == count
        assert not known
        return query

    def _sample(self, batch: Batch, bitmask: NDArray[np.int32] | None) -> StepResult:
        rows = [] if batch.grammar_rows is None else batch.grammar_rows.tolist()
        masks = {} if bitmask is None else dict(zip(rows, map(_to_int, bitmask), strict=True))
        width = 1 + int(batch.num_drafts.max())
        token_ids = np.full((batch.num_rows, width), VOCAB_SIZE - 1, np.int32)
        num_tokens = np.zeros(batch.num_rows, np.int32)
        for row in range(batch.num_rows):
            new = self._sample_row(batch, row, masks.get(row))
            token_ids[row, : len(new)] = new
            num_tokens[row] = len(new)
        logprobs = self._logprobs(batch, token_ids)
        return StepResult(token_ids, num_tokens, logprobs, self._prompt_logprobs(batch))

    def _sample_row(self, batch: Batch, row: int, allowed: int | None) -> list[int]:
        slot = self._slots[int(batch.slots[row])]
        end = slot.length + int(batch.num_query[row])
        texts = [self._read(slot, table, end) for table in range(len(slot.tables))]
        if not batch.samples[row]:
            slot.length = end
            return []
        num_drafts = int(batch.num_drafts[row])
        drafts = texts[0][end - num_drafts :]
        texts = [text[: end - num_drafts] for text in texts]
        new = [token_of(texts, self._windows, allowed)]
        for draft in drafts:
            if draft != new[-1]:
                break
            new.append(token_of([text + new for text in texts], self._windows, allowed))
        slot.length = len(texts[0]) + len(new) - 1
        slot.last_token = new[-1]
        slot.drafts = self._draft(texts[0] + new)
        return new

    def _draft(self, text: list[int]) -> list[int]:
        drafts: list[int] = []
        for _ in range(self._num_drafts):
            right = next_token(text + drafts, self._windows)
            wrong = (right + 1) % VOCAB_SIZE
            drafts.append(right if self._rng.random() < self._draft_accuracy else wrong)
        return drafts

    def _read(self, slot: Slot, index: int, end: int) -> list[int]:
        """The text as a table has it. Before the window it is made up: it must not matter."""
        table, window = slot.tables[index], self._windows[index]
        first = max(0, slot.length - window + 1) if window else 0
        text = [self._cache[self._address(table, position)] for position in range(first, end)]
        assert EMPTY not in text
        assert all(value // VOCAB_SIZE == index for value in text), "blocks of another table"
        text = [value % VOCAB_SIZE for value in text]
        if not window:
            assert self._context[self._address(table, end - 1)] == crc32(bytes(text))
        return [0] * first + text

    def _address(self, table: list[int], position: int) -> int:
        block, offset = divmod(position, self._block_size)
        return table[block] * self._block_size + offset

    def _logprobs(self, batch: Batch, token_ids: NDArray[np.int32]) -> RowLogprobs | None:
        """Made up, but recognisable: the token, then its successors."""
        tops = [self._slots[slot].params.logprobs for slot in batch.slots.tolist()]
        top = max((t for t in tops if t is not None), default=None)
        if top is None:
            return None
        ids = (token_ids[:, :, None] + np.arange(1 + top, dtype=np.int32)) % VOCAB_SIZE
        return RowLogprobs(ids, -ids.astype(np.float32), token_ids + 1)

    def _prompt_logprobs(self, batch: Batch) -> dict[int, PromptLogprobs] | None:
        if batch.prompt_logprobs is None:
            return None
        found = {}
        for row in np.flatnonzero(batch.prompt_logprobs >= 0).tolist():
            slot, start = self._slots[int(batch.slots[row])], int(batch.start[row])
            end = min(start + int(batch.num_query[row]), slot.prompt_len - 1)
            chosen = np.array(slot.known[start + 1 : end + 1], np.int32)
            columns = np.arange(1 + batch.prompt_logprobs[row], dtype=np.int32)
            ids = (chosen[:, None] + columns) % VOCAB_SIZE
            found[row] = PromptLogprobs(ids, -ids.astype(np.float32), chosen + 1)
        return found


def check_batch(batch: Batch, info: EngineInfo) -> None:
    """What every batch promises to the runner."""
    rows = batch.num_rows
    assert 0 < rows <= info.max_num_seqs and len(set(batch.slots.tolist())) == rows
    assert batch.num_tokens == batch.num_query.sum() <= info.max_num_batched_tokens
    assert (batch.num_query > 0).all()
    assert batch.max_query_len == batch.num_query.max()
    assert batch.max_seq_len == (batch.start + batch.num_query).max() <= info.max_model_len
    assert len(batch.prompt_tokens) == batch.num_query[~batch.resident].sum()
    assert (batch.num_query[batch.resident] == 1 + batch.num_drafts[batch.resident]).all()
    assert not batch.num_drafts[~batch.resident].any() and batch.samples[batch.resident].all()
    arrays = (batch.slots, batch.num_query, batch.num_drafts, batch.start, batch.prompt_tokens)
    new = batch.new_blocks
    assert all(a.dtype == np.int32 for a in (*arrays, new.slots, new.index, new.block_ids))
    assert not (new.block_ids == 0).any(), "the null block is never handed out"


def _slot_of(admission: Admission, num_tables: int) -> Slot:
    columns = admission.block_ids.reshape(-1, num_tables)
    return Slot(
        params=admission.params,
        known=admission.token_ids.tolist(),
        prompt_len=admission.prompt_len,
        tables=[columns[:, table].tolist() for table in range(num_tables)],
        length=admission.num_computed,
    )


def _to_int(words: NDArray[np.int32]) -> int:
    """A row of a bitmask as one number."""
    return int.from_bytes(np.ascontiguousarray(words, "<i4").tobytes(), "little")

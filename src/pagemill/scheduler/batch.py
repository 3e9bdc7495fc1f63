"""One scheduled step, on the host. Encoded once, replayed by every rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pagemill.params import PoolingParams, SamplingParams

Int32 = NDArray[np.int32]
Bool = NDArray[np.bool_]


@dataclass(slots=True)
class Admission:
    """A request that takes a slot in this step: the slot's state is set before anything runs.

    `block_ids` are the blocks of the cached prefix, a column for each row and table (new blocks
    come with `Batch.new_blocks`), `num_computed` the tokens they hold. `token_ids` is the whole
    known text, prompt and anything generated before a preemption; `prompt_len` says where
    generation began (penalties count the two separately).
    """

    slot: int
    request_id: str
    params: SamplingParams
    seed: int  # unsigned 64 bit; drawn by the scheduler when the caller gave none
    block_ids: Int32  # [num_cached_columns, tables]
    num_computed: int
    token_ids: Int32  # [prompt_len + generated before a preemption]
    prompt_len: int
    pooling: PoolingParams | None = None


@dataclass(slots=True)
class NewBlocks:
    """Blocks to append to block tables: `table[t][slots[i], index[i]] = block_ids[i, t]`."""

    slots: Int32  # [k]
    index: Int32  # [k]
    block_ids: Int32  # [k, tables]


@dataclass(slots=True)
class Batch:
    """The rows of a step. Row order is fixed: results come back in the same order.

    A row is *resident* when its input tokens are on the device: the slot's last token, then its
    `num_drafts` drafts. Otherwise its tokens are the next `num_query` ids of `prompt_tokens`.
    `start` is the position of the first query token as the host knows it; with drafts in flight
    the device's own length may be lower, never higher.
    """

    slots: Int32  # [n]
    num_query: Int32  # [n]
    num_drafts: Int32  # [n]
    start: Int32  # [n]
    samples: Bool  # [n] the row yields a token
    resident: Bool  # [n]
    prompt_tokens: Int32  # [m] of the rows that are not resident, in row order
    new_blocks: NewBlocks
    admitted: list[Admission] = field(default_factory=list)
    needs_grammar: bool = False
    grammar_rows: Int32 | None = None  # [g] rows whose logits a bitmask restricts
    prompt_logprobs: Int32 | None = (
        None  # [n] top-N wanted for the prompt, -1 none; or no row wants
    )
    num_tokens: int = 0  # sum of num_query
    max_query_len: int = 0
    max_seq_len: int = 0  # max of start + num_query

    @property
    def num_rows(self) -> int:
        return len(self.slots)

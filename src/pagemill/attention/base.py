"""What a step's tensors look like, and what an attention backend must do with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The constants of one attention layer. Window and cap are 0 when the layer has none."""

    layer_index: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int = 0  # a query at p sees keys in (p - window, p]
    soft_cap: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The pages of one layer, [num_blocks, num_kv_heads, block_size, head_dim] each;
    in int8 with scales, see `ops/int8_cache.py`.

    Allocate them as zeros: backends may multiply what lies behind a row's end by zero, and
    uninitialised memory can hold NaN.
    """

    k: Tensor
    v: Tensor


@dataclass(frozen=True, slots=True)
class RopeInput:
    """What attention needs to norm and rotate queries and keys itself."""

    cos_sin: Tensor  # [max_position, D] float32
    q_norm: Tensor | None  # [D] float32
    k_norm: Tensor | None  # [D] float32
    eps: float


@dataclass(slots=True)
class ForwardBatch:
    """A step's tensors, on the device. An argument of every layer: there is no global context.

    Rows are packed without padding: row i owns tokens query_start[i] to query_start[i + 1].
    `seq_lens` counts the row's tokens including those of this step. `max_query_len` and
    `max_seq_len` are upper bounds that the host knows without asking the device.
    """

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64
    query_start: Tensor  # [n + 1] int32
    seq_lens: Tensor  # [n] int32
    block_table: Tensor  # [n, max_blocks] int32
    logits_rows: Tensor  # [num_logits] int64, tokens whose logits are wanted
    num_seqs: int
    num_tokens: int
    max_query_len: int
    max_seq_len: int
    # The host's own copies of query_start (exact) and seq_lens (upper bounds); backends that
    # need them wait for the device where they are missing.
    host_query_start: NDArray[np.int32] | None = None
    host_seq_lens: NDArray[np.int32] | None = None
    kv_cache: list[LayerCache] = field(default_factory=list)
    attention: AttentionBackend | None = None
    packed: PackedAttention | None = None  # of models without a cache, instead of `attention`
    plan: Any = None  # the backend's own
    token_types: Tensor | None = None  # [T] int64: 0, or 1 in the second text of a pair
    # Where layers differ in their block table: the table of each layer, and the batch with each
    # table but the first. (This batch is not in the list: a cycle would keep its tensors.)
    layer_tables: Sequence[int] = ()
    more_tables: list[ForwardBatch] = field(default_factory=list)

    def of_layer(self, index: int) -> ForwardBatch:
        """With the block table, slot mapping and plan of a layer."""
        table = self.layer_tables[index] if self.more_tables else 0
        return self.more_tables[table - 1] if table else self


class AttentionBackend(Protocol):
    """Paged attention. New keys and values are already in the cache when `run` is called."""

    name: str

    def plan(self, batch: ForwardBatch) -> Any:
        """Prepare what all layers of the step share; must not wait for the device."""
        ...

    def run(self, spec: AttentionSpec, q: Tensor, batch: ForwardBatch) -> Tensor:
        """Causal attention of q [T, num_heads, D] over each row's pages -> [T, num_heads * D]."""
        ...


@runtime_checkable
class FusedAttention(Protocol):
    """A backend that takes queries, keys and values as the projection leaves them."""

    def run_with_rope(
        self, spec: AttentionSpec, qkv: Tensor, batch: ForwardBatch, rope: RopeInput
    ) -> Tensor:
        """`Ops.qk_norm_rope_cache`, then `run`, for rows with one query token each.

        qkv is [T, q_size + 2 kv_size]; returns [T, num_heads * D].
        """
        ...


class PackedAttention(Protocol):
    """Attention of every token to its whole row, without a cache."""

    name: str

    def plan(self, batch: ForwardBatch) -> Any:
        """Prepare what all layers of the step share. Rows of equal length should be neighbours."""
        ...

    def run_packed(self, spec: AttentionSpec, qkv: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, 3 * num_heads * D] -> [T, num_heads * D]."""
        ...

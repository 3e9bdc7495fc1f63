"""What a device must offer so that a step with prompts in it can be captured in a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from pagemill.ops.decode import DecodeOps, DecodeState


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The rows of a step as the host has decided them, padded to R rows and T tokens; all int32.

    Rows behind the last one stand for the spare slot: they have no tokens and yield none.
    """

    slots: Tensor  # [R]
    query_start: Tensor  # [R + 1] row i owns tokens query_start[i] to query_start[i + 1]
    samples: Tensor  # [R] 1 where the row yields a token, else 0
    token_rows: Tensor  # [T] each token's row, -1: padding
    known: Tensor  # [T] token ids, -1: the last token of the row's slot


@dataclass(frozen=True, slots=True)
class PackedInputs:
    """The inputs of such a step. Padding is token 0 at position 0, and written nowhere."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64, -1 for padding
    seq_lens: Tensor  # [R] int32, 0 for padding
    block_table: Tensor  # [R, max_blocks] int32; unset behind the row's last block
    last_tokens: Tensor  # [R] int64, where the row's last token is; some token for padding
    temperature: Tensor  # [R] float32, 0 for padding
    uniform: Tensor  # [R] float32 in [0, 1]: the random number for the token that comes next


@runtime_checkable
class PackedOps(DecodeOps, Protocol):
    """Kernels around the model in a captured step. None of them waits for the device."""

    def packed_inputs(self, rows: PackedRows, state: DecodeState, block_size: int) -> PackedInputs:
        """Look up what the slots hold."""
        ...

    def packed_advance(
        self, rows: PackedRows, state: DecodeState, tokens: Tensor, out: Tensor
    ) -> None:
        """Count the rows' tokens as cached, and make `tokens` [R] int64 the slots' next inputs.

        A row that does not sample gets token 0 instead. What each row got goes to `out` [R] int32.
        The spare slot stays as it is.
        """
        ...

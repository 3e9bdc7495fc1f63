"""What a device must offer so that a whole decode step can be captured in a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from pagemill.ops.sampling import DrawingOps, SamplingRows, SlotSampling


@dataclass(frozen=True, slots=True)
class DecodeState:
    """What the device remembers of each slot; [slots, ...]. The last slot is spare: padding."""

    length: Tensor  # int64, tokens in the cache
    next_input: Tensor  # int64 [slots, 1 + drafts], the last sampled token first
    block_table: Tensor  # int32 [slots, max_blocks]
    sampling: SlotSampling


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """The inputs of rows with one resident token each. Rows of the spare slot write nowhere."""

    input_ids: Tensor  # [n] int64
    positions: Tensor  # [n] int64
    slot_mapping: Tensor  # [n] int64, -1 for the spare slot
    seq_lens: Tensor  # [n] int32
    block_table: Tensor  # [n, max_blocks] int32; unset behind the row's last block
    sampling: SamplingRows  # [n], with the random number for the token that comes next


@runtime_checkable
class DecodeOps(DrawingOps, Protocol):
    """Kernels around the model in a captured step. None of them waits for the device."""

    def decode_inputs(
        self,
        slots: Tensor,
        state: DecodeState,
        block_size: int,
        into: DecodeInputs | None = None,
    ) -> DecodeInputs:
        """Look up rows of `slots` [n] int64. Those of the spare slot are greedy.

        Where memory is not handed out by a graph, `into`, made by an earlier call for as many rows
        and the same state, is written again and returned.
        """
        ...

    def decode_advance(
        self, slots: Tensor, state: DecodeState, tokens: Tensor, out: Tensor
    ) -> None:
        """Make `tokens` [n] int64 the slots' next inputs, one place further; copy to `out` int32.

        The spare slot stays as it is.
        """
        ...

"""What a decode step does around the model, natively; see native/decode.h."""

from __future__ import annotations

import torch
from torch import Tensor

from pagemill.ops.cpu import _native
from pagemill.ops.cpu.sampling import empty_rows, native_columns, rows_of
from pagemill.ops.cpu.types import address
from pagemill.ops.decode import DecodeInputs, DecodeState


class SlotLookUp:
    """The inputs of resident rows, and what comes of them. Remembers the last state's addresses."""

    def __init__(self) -> None:
        self._last: tuple[DecodeState, _native.SlotTable] | None = None

    def inputs(
        self, slots: Tensor, state: DecodeState, block_size: int, into: DecodeInputs | None
    ) -> DecodeInputs:
        """`DecodeOps.decode_inputs`."""
        out = into or _empty_inputs(len(slots), state.block_table.shape[1])
        # Longs and columns are consecutive, so that their first fields have the addresses of all.
        _native.decode_inputs(
            self._table(state),
            address(slots),
            len(slots),
            block_size,
            out.input_ids.data_ptr(),
            out.seq_lens.data_ptr(),
            out.block_table.data_ptr(),
            out.sampling.temperature.data_ptr(),
            out.sampling.uniform.data_ptr(),
        )
        return out

    def advance(self, slots: Tensor, state: DecodeState, tokens: Tensor, out: Tensor) -> None:
        """`DecodeOps.decode_advance`."""
        assert out.dtype == torch.int32 and tokens.dtype == torch.int64
        _native.decode_advance(
            self._table(state), address(slots), address(tokens), len(slots), address(out)
        )

    def _table(self, state: DecodeState) -> _native.SlotTable:
        if self._last is None or self._last[0] is not state:
            self._last = state, _slot_table(state)
        return self._last[1]


def _slot_table(state: DecodeState) -> _native.SlotTable:
    assert state.length.dtype == state.next_input.dtype == torch.int64
    assert state.block_table.dtype == torch.int32
    return _native.SlotTable(
        address(state.length),
        address(state.next_input),
        address(state.block_table),
        len(state.length),
        state.next_input.stride(0),
        state.block_table.stride(0),
        native_columns(state.sampling),
    )


def _empty_inputs(num_rows: int, num_blocks: int) -> DecodeInputs:
    input_ids, positions, slot_mapping = torch.empty(3, num_rows, dtype=torch.int64).unbind()
    return DecodeInputs(
        input_ids,
        positions,
        slot_mapping,
        seq_lens=torch.empty(num_rows, dtype=torch.int32),
        block_table=torch.empty(num_rows, num_blocks, dtype=torch.int32),
        sampling=rows_of(*empty_rows(num_rows)),
    )

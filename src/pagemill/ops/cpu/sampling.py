"""Tokens from logits by the native kernels; see native/sampling.h."""

from __future__ import annotations

import torch
from torch import Tensor

from pagemill.ops.cpu import _native
from pagemill.ops.cpu.types import address, float_address, type_code
from pagemill.ops.sampling import SamplingRows, SlotSampling

_COLUMNS = 4  # temperature, top-k, top-p, min-p: the fields of SamplingRows that are float32


def argmax(logits: Tensor) -> Tensor:
    """`DrawingOps.argmax`."""
    rows, width = logits.shape
    assert logits.stride(1) == 1
    tokens = torch.empty(rows, dtype=torch.int64)
    _native.argmax(
        type_code(logits), logits.data_ptr(), logits.stride(0), rows, width, tokens.data_ptr()
    )
    return tokens


def sample(logits: Tensor, rows: SamplingRows, workspace: _native.Workspace) -> Tensor:
    """`DrawingOps.sample`; each row tells by itself which filters it has."""
    num_rows, width = logits.shape
    assert logits.stride(1) == 1
    top_k, uniform = rows.top_k.float(), rows.uniform.double()  # themselves, if they are so
    tokens = torch.empty(num_rows, dtype=torch.int64)
    _native.sample(
        type_code(logits),
        logits.data_ptr(),
        logits.stride(0),
        num_rows,
        width,
        float_address(rows.temperature),
        float_address(top_k),
        float_address(rows.top_p),
        float_address(rows.min_p),
        address(uniform),
        tokens.data_ptr(),
        workspace,
    )
    return tokens


def empty_rows(num_rows: int) -> tuple[Tensor, Tensor]:
    """Room for the fields of `SamplingRows`: columns [4, n] and numbers [n]."""
    return torch.empty(_COLUMNS, num_rows), torch.empty(num_rows, dtype=torch.float64)


def sampling_rows(slots: Tensor, index: Tensor, state: SlotSampling) -> SamplingRows:
    """`SamplingOps.sampling_rows`."""
    assert slots.dtype == index.dtype == torch.int64
    columns, uniform = empty_rows(len(slots))
    _native.sampling_rows(
        native_columns(state),
        address(slots),
        address(index),
        len(slots),
        columns.data_ptr(),
        uniform.data_ptr(),
    )
    return rows_of(columns, uniform)


def rows_of(columns: Tensor, uniform: Tensor) -> SamplingRows:
    """The fields that `empty_rows` has made room for."""
    temperature, top_k, top_p, min_p = columns.unbind()
    return SamplingRows(temperature, top_k, top_p, min_p, uniform)


def native_columns(state: SlotSampling) -> _native.SamplingColumns:
    """The addresses of the slots' numbers, which live as long as these do."""
    columns = (state.temperature, state.top_k, state.top_p, state.min_p)
    stride = state.temperature.stride(0)
    assert all(c.dtype == torch.float32 and c.stride(0) == stride for c in columns)
    assert state.seeds.dtype == torch.int64
    temperature, top_k, top_p, min_p = (column.data_ptr() for column in columns)
    return _native.SamplingColumns(temperature, top_k, top_p, min_p, address(state.seeds), stride)

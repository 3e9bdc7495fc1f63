"""Linear layers for one token: y = W x at the speed of reading W, with its neighbours fused in.

A program owns tiles of output rows. The first tile of weights is loaded before the kernel waits
for its input (programmatic dependent launch), so in a chain of layers the memory never idles; later
tiles are loaded one ahead. Fused in on request: the input's RMSNorm, which every program computes
for itself, the gated activation, and the addition to the residual stream.
"""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.ops.triton.activation import gelu_tanh, silu
from pagemill.ops.triton.helper import helper
from pagemill.ops.triton.launch import cdiv, next_power_of_2, num_sms, supports_pdl, wait_for_inputs

MAX_WIDTH = 4096  # of an input that a program takes at once
LONG_PIECE = 2048  # longer ones are taken in pieces of so many elements
NO_ACTIVATION, SILU, GELU = 0, 1, 2
ACTIVATIONS = {None: NO_ACTIVATION, "silu": SILU, "gelu_tanh": GELU}


@dataclass(frozen=True, slots=True)
class VectorConfig:
    """Output rows per tile, warps per program and programs per multiprocessor."""

    block_n: int
    num_warps: int
    programs_per_sm: int


def vector_config(out_features: int, in_features: int, gated: bool) -> VectorConfig:
    """Tiles that hide the next layer's first loads; measured in whole steps on an H200.

    Short matrices get tiles of 16 KiB of weights. Longer ones, which have more than one tile for a
    program, get as much to load ahead by more warps, or by the two matrices of a gate.
    """
    width = min(next_power_of_2(in_features), MAX_WIDTH)
    if out_features > 16384:
        return VectorConfig(max(1, 16384 // width), 8, 8)
    if in_features > MAX_WIDTH:
        return VectorConfig(8192 // LONG_PIECE, 4, 4)
    if width > 2048 and out_features > 2048:
        return VectorConfig(max(1, (4096 if gated else 8192) // width), 4, 4)
    if gated:
        return VectorConfig(max(1, 8192 // width), 4, 4)
    if out_features > 2048:
        return VectorConfig(max(1, 4096 // width), 8, 4)
    return VectorConfig(max(1, (16384 if width > 2048 else 8192) // width), 4, 8)


@helper
def _load_tile(w_ptr, rows, cols, num_rows, K: tl.constexpr):
    mask = (rows < num_rows)[:, None] & (cols < K)[None, :]
    at = rows.to(tl.int64)[:, None] * K + cols[None, :]
    return tl.load(w_ptr + at, mask=mask, other=0.0, eviction_policy="evict_first")


@helper
def _store_rows(y, out_ptr, bias_ptr, rows, num_rows, BIAS: tl.constexpr, ADD: tl.constexpr):
    """Store y [BLOCK_N], plus the bias, plus what `out` holds."""
    mask = rows < num_rows
    if BIAS:
        y += tl.load(bias_ptr + rows, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        y += tl.load(out_ptr + rows, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _short_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    eps,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PDL: tl.constexpr,
):
    """All of x fits in registers."""
    cols = tl.arange(0, BLOCK_K)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.num_programs(0) * BLOCK_N
    up_ptr = w_ptr + num_rows.to(tl.int64) * K
    tile = _load_tile(w_ptr, rows, cols, num_rows, K)
    up_tile = tile
    if ACTIVATION != 0:
        up_tile = _load_tile(up_ptr, rows, cols, num_rows, K)
    if NORM:
        weight = tl.load(norm_ptr + cols, mask=cols < K, other=0.0)
    wait_for_inputs(PDL)
    x = tl.load(x_ptr + cols, mask=cols < K, other=0.0).to(tl.float32)
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / K + eps) * weight
    for _ in range(tl.program_id(0) * BLOCK_N, num_rows, step):
        ahead = rows + step
        next_tile = _load_tile(w_ptr, ahead, cols, num_rows, K)
        next_up = next_tile
        if ACTIVATION != 0:
            next_up = _load_tile(up_ptr, ahead, cols, num_rows, K)
        y = tl.sum(tile.to(tl.float32) * x[None, :], axis=1)
        if ACTIVATION != 0:
            y = gelu_tanh(y) if ACTIVATION == 2 else silu(y)
            y *= tl.sum(up_tile.to(tl.float32) * x[None, :], axis=1)
        _store_rows(y, out_ptr, bias_ptr, rows, num_rows, BIAS, ADD)
        rows = ahead
        tile = next_tile
        up_tile = next_up


@triton.jit
def _long_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    """x is taken in pieces; a program owns one tile of output rows."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    tile = _load_tile(w_ptr, rows, cols, num_rows, K)
    wait_for_inputs(PDL)
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for first in range(0, K, BLOCK_K):
        here = first + cols
        next_tile = _load_tile(w_ptr, rows, here + BLOCK_K, num_rows, K)
        x = tl.load(x_ptr + here, mask=here < K, other=0.0).to(tl.float32)
        sums += tile.to(tl.float32) * x[None, :]
        tile = next_tile
    _store_rows(tl.sum(sums, axis=1), out_ptr, bias_ptr, rows, num_rows, BIAS, ADD)


def _launch_short(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    add: bool,
    config: VectorConfig,
    norm: Tensor | None = None,
    eps: float = 0.0,
    activation: str | None = None,
) -> None:
    in_features, num_rows = weight.shape[1], out.shape[1]
    programs = min(cdiv(num_rows, config.block_n), num_sms(x) * config.programs_per_sm)
    pdl = supports_pdl(x)
    _short_kernel[(programs,)](
        x,
        norm,
        weight,
        bias,
        out,
        num_rows,
        eps,
        K=in_features,
        BLOCK_N=config.block_n,
        BLOCK_K=next_power_of_2(in_features),
        NORM=norm is not None,
        ADD=add,
        BIAS=bias is not None,
        ACTIVATION=ACTIVATIONS[activation],
        PDL=pdl,
        num_warps=config.num_warps,
        launch_pdl=pdl,
    )


def _launch_long(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, add: bool, config: VectorConfig
) -> None:
    num_rows, in_features = weight.shape
    pdl = supports_pdl(x)
    _long_kernel[(cdiv(num_rows, config.block_n),)](
        x,
        weight,
        bias,
        out,
        num_rows,
        K=in_features,
        BLOCK_N=config.block_n,
        BLOCK_K=LONG_PIECE,
        BIAS=bias is not None,
        ADD=add,
        PDL=pdl,
        num_warps=config.num_warps,
        launch_pdl=pdl,
    )


def vector_linear(
    x: Tensor,  # [1, in]
    weight: Tensor,  # [out, in], contiguous
    bias: Tensor | None = None,  # [out]
    add_to: Tensor | None = None,  # [1, out]
    config: VectorConfig | None = None,
) -> Tensor:
    """x @ weight^T + bias -> [1, out], in float32 until it is stored.

    With `add_to`, that is changed in place (`add_to += ...`) and returned.
    """
    num_rows, in_features = weight.shape
    add = add_to is not None
    out = torch.empty(1, num_rows, dtype=x.dtype, device=x.device) if add_to is None else add_to
    config = config or vector_config(num_rows, in_features, gated=False)
    launch = _launch_short if in_features <= MAX_WIDTH else _launch_long
    launch(x, weight, bias, out, add, config)
    return out


def norm_vector_linear(
    x: Tensor,  # [1, in], in <= MAX_WIDTH
    norm: Tensor,  # [in] float32
    eps: float,
    weight: Tensor,  # [out, in], or [2 out, in] with an activation: gate rows, then up rows
    bias: Tensor | None = None,  # [out]; not with an activation
    activation: str | None = None,  # "silu", "gelu_tanh"
    config: VectorConfig | None = None,
) -> Tensor:
    """RMSNorm of x, times weight^T, and with an activation act(gate) * up -> [1, out]."""
    assert bias is None or activation is None
    gated = activation is not None
    num_rows = weight.shape[0] // 2 if gated else weight.shape[0]
    config = config or vector_config(num_rows, weight.shape[1], gated)
    out = torch.empty(1, num_rows, dtype=x.dtype, device=x.device)
    _launch_short(x, weight, bias, out, False, config, norm, eps, activation)
    return out

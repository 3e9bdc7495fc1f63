"""Linear layers for a few tokens, with their neighbours fused in.

The weights are the tall operand (W x^T), so that few tokens waste little of a tile. Narrow layers
are split over the input as well; the program of a tile that finishes last adds the pieces in a
fixed order, so results do not depend on timing.

RMSNorm takes no kernel of its own: whoever writes the residual stream also writes its product with
the next norm's weights, and sums of its squares; whoever reads that product scales its rows by
1 / RMS at the end, which is the same since the scale is one number per token.
"""

# ruff: noqa: N803, N806 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.ops.fused import Stream
from pagemill.ops.triton.activation import gelu_tanh, silu
from pagemill.ops.triton.helper import helper
from pagemill.ops.triton.launch import (
    cdiv,
    has_small_shared,
    next_power_of_2,
    num_sms,
    supports_pdl,
    wait_for_inputs,
)

MIN_PIECE = 128  # elements of the input that a program takes at least
NO_ACTIVATION, SILU, GELU = 0, 1, 2
ACTIVATIONS = {None: NO_ACTIVATION, "silu": SILU, "gelu_tanh": GELU}


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """Tile shapes (tokens, output rows, input), and into how many pieces the input is split."""

    block_m: int
    block_n: int
    block_k: int
    splits: int
    num_warps: int
    num_stages: int


def batch_config(
    tokens: int,
    out_features: int,
    in_features: int,
    sms: int,
    gated: bool = False,
    small_shared: bool = False,
) -> BatchConfig:
    """Tiles by the number of tokens, and as many pieces as the multiprocessors take at once.

    If `gated`, `out_features` counts pairs of rows. With `small_shared` the tiles of up to 16
    tokens fit into `SMALL_SHARED`. Measured on an H100; `tune_batch.py` shows how.
    """
    block_m = min(64, max(16, next_power_of_2(tokens)))
    block_n, block_k = 64, 128
    if block_m == 16 and gated and cdiv(out_features, block_n) < sms:
        block_n, block_k = 32, 256
    elif block_m == 16 and not gated:
        block_k = 256
    tiles = cdiv(out_features, block_n) * cdiv(tokens, block_m)
    splits = 1
    while 2 * tiles * splits <= sms and in_features >= 2 * splits * MIN_PIECE:
        splits *= 2
    return BatchConfig(block_m, block_n, block_k, splits, 4, 3 if small_shared else 4)


@helper
def _load_weights(w_ptr, rows, cols, num_rows, K: tl.constexpr, EVEN: tl.constexpr):
    at = rows.to(tl.int64)[:, None] * K + cols[None, :]
    if EVEN:
        return tl.load(w_ptr + at)
    return tl.load(w_ptr + at, mask=(rows < num_rows)[:, None] & (cols < K)[None, :], other=0.0)


@helper
def _row_scales(
    squares_ptr, tokens, num_tokens, num_squares, eps, K: tl.constexpr, SQUARES: tl.constexpr
):
    """1 / RMS of each token [M], from the sums of its squares."""
    parts = tl.arange(0, SQUARES)
    at = parts[:, None] * num_tokens + tokens[None, :]
    mask = (parts < num_squares)[:, None] & (tokens < num_tokens)[None, :]
    return tl.rsqrt(tl.sum(tl.load(squares_ptr + at, mask=mask, other=0.0), axis=0) / K + eps)


@helper
def _add_to_stream(
    y, out_ptr, norm_ptr, scaled_ptr, sums_ptr, at, mask, tile, rows, tokens, num_rows, num_tokens
):
    """out += y, rounded; its product with the norm's weights; the sums of its squares."""
    y += tl.load(out_ptr + at, mask=mask, other=0.0).to(tl.float32)
    rounded = y.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, rounded, mask=mask)
    y = tl.where(mask, rounded.to(tl.float32), 0.0)
    norm = tl.load(norm_ptr + rows, mask=rows < num_rows, other=0.0)
    tl.store(scaled_ptr + at, (y * norm[:, None]).to(scaled_ptr.dtype.element_ty), mask=mask)
    sums = tl.sum(y * y, axis=0)
    tl.store(sums_ptr + tile * num_tokens + tokens, sums, mask=tokens < num_tokens)


@helper
def _products(
    x_ptr, w_ptr, rows, tokens, first, num_tokens, num_rows, x_stride, K: tl.constexpr,
    PIECE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GATED: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """W x^T over `first` .. `first` + PIECE of the input: [N, M], twice if gated."""
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    up_acc = acc
    x_rows = x_ptr + tokens[:, None] * x_stride
    there = (tokens < num_tokens)[:, None]
    for start in range(0, PIECE, BLOCK_K):
        cols = first + start + tl.arange(0, BLOCK_K)
        mask = there if EVEN else there & (cols < K)[None, :]
        w = _load_weights(w_ptr, rows, cols, num_rows, K, EVEN)
        x = tl.load(x_rows + cols[None, :], mask=mask, other=0.0)
        acc = tl.dot(w, tl.trans(x), acc=acc, input_precision=PRECISION)
        if GATED:
            up_ptr = w_ptr + num_rows.to(tl.int64) * K
            up = _load_weights(up_ptr, rows, cols, num_rows, K, EVEN)
            up_acc = tl.dot(up, tl.trans(x), acc=up_acc, input_precision=PRECISION)
    return acc, up_acc


@helper
def _add_up_pieces(
    partial_ptr, acc, up_acc, place, split, counter_ptr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Store this piece; the last of a tile's programs gets the sums, and True."""
    SIZE: tl.constexpr = BLOCK_N * BLOCK_M
    PARTS: tl.constexpr = 2 if GATED else 1
    at = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    own_ptr = partial_ptr + place.to(tl.int64) * (SPLITS * PARTS * SIZE)
    tl.store(own_ptr + split * PARTS * SIZE + at, acc)
    if GATED:
        tl.store(own_ptr + (split * PARTS + 1) * SIZE + at, up_acc)
    tl.debug_barrier()  # every thread's stores come before the release below
    last = tl.atomic_add(counter_ptr + place, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if last:
        tl.store(counter_ptr + place, 0)
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        up_acc = acc
        for piece in tl.static_range(SPLITS):
            acc += tl.load(own_ptr + piece * PARTS * SIZE + at, cache_modifier=".cg")
            if GATED:
                up_ptr = own_ptr + (piece * PARTS + 1) * SIZE
                up_acc += tl.load(up_ptr + at, cache_modifier=".cg")
    return acc, up_acc, last


@triton.jit(do_not_specialize=["num_tokens", "num_squares"])
def _batch_kernel(
    x_ptr,
    squares_ptr,
    w_ptr,
    bias_ptr,
    out_ptr,
    norm_ptr,
    scaled_ptr,
    sums_ptr,
    partial_ptr,
    counter_ptr,
    num_tokens,
    num_rows,
    num_squares,
    x_stride,
    eps,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    SQUARES: tl.constexpr,
    EVEN: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    PIECE: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    GATED: tl.constexpr = ACTIVATION != 0
    tile, split, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = group * BLOCK_M + tl.arange(0, BLOCK_M)
    wait_for_inputs(PDL)
    acc, up_acc = _products(
        x_ptr, w_ptr, rows, tokens, split * PIECE, num_tokens, num_rows, x_stride, K, PIECE,
        BLOCK_M, BLOCK_N, BLOCK_K, GATED, EVEN, PRECISION,
    )  # fmt: skip
    if SPLITS > 1:
        place = group * tl.num_programs(0) + tile
        acc, up_acc, last = _add_up_pieces(
            partial_ptr, acc, up_acc, place, split, counter_ptr, BLOCK_M, BLOCK_N, SPLITS, GATED
        )
        if not last:
            return
    if SQUARES > 0:
        scale = _row_scales(squares_ptr, tokens, num_tokens, num_squares, eps, K, SQUARES)
        acc *= scale[None, :]
        up_acc *= scale[None, :]
    if BIAS:
        bias = tl.load(bias_ptr + rows, mask=rows < num_rows, other=0.0)
        acc += bias.to(tl.float32)[:, None]
    if GATED:
        acc = (gelu_tanh(acc) if ACTIVATION == 2 else silu(acc)) * up_acc
    mask = (rows < num_rows)[:, None] & (tokens < num_tokens)[None, :]
    at = tokens[None, :].to(tl.int64) * num_rows + rows[:, None]
    if ADD:
        _add_to_stream(
            acc, out_ptr, norm_ptr, scaled_ptr, sums_ptr, at, mask, tile, rows, tokens, num_rows,
            num_tokens,
        )  # fmt: skip
    else:
        tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _begin_stream_kernel(
    values_ptr, norm_ptr, scaled_ptr, sums_ptr, K: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, BLOCK)
    norm = tl.load(norm_ptr + cols, mask=cols < K, other=0.0)
    wait_for_inputs(PDL)
    token = tl.program_id(0)
    at = token.to(tl.int64) * K + cols
    x = tl.load(values_ptr + at, mask=cols < K, other=0.0).to(tl.float32)
    tl.store(scaled_ptr + at, (x * norm).to(scaled_ptr.dtype.element_ty), mask=cols < K)
    tl.store(sums_ptr + token, tl.sum(x * x, axis=0))


def begin_stream(values: Tensor, norm: Tensor) -> Stream:
    """The stream of values [m, width], which later kernels change in place."""
    num_tokens, width = values.shape
    squares = torch.empty(1, num_tokens, dtype=torch.float32, device=values.device)
    stream = Stream(values, norm, torch.empty_like(values), squares)
    pdl = supports_pdl(values)
    _begin_stream_kernel[(num_tokens,)](
        values, norm, stream.scaled, stream.squares, K=width, BLOCK=next_power_of_2(width), PDL=pdl,
        launch_pdl=pdl,
    )  # fmt: skip
    return stream


def _launch(
    x: Tensor,
    squares: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    stream: Stream | None,
    activation: str | None,
    counters: Tensor,
    config: BatchConfig | None,
) -> None:
    num_tokens, in_features = x.shape
    num_rows = out.shape[1]
    gated = activation is not None
    config = config or batch_config(
        num_tokens, num_rows, in_features, num_sms(x), gated, has_small_shared(x)
    )
    tiles, groups = cdiv(num_rows, config.block_n), cdiv(num_tokens, config.block_m)
    tile_size = config.block_n * config.block_m * (2 if gated else 1)
    pieces = tiles * groups * config.splits if config.splits > 1 else 0
    partial = torch.empty(pieces * tile_size, dtype=torch.float32, device=x.device)
    if stream is not None:
        stream.squares = torch.empty(tiles, num_tokens, dtype=torch.float32, device=x.device)
    pdl = supports_pdl(x)
    _batch_kernel[(tiles, config.splits, groups)](
        x,
        squares,
        weight,
        bias,
        out,
        None if stream is None else stream.norm,
        None if stream is None else stream.scaled,
        None if stream is None else stream.squares,
        partial,
        counters,
        num_tokens,
        num_rows,
        0 if squares is None else len(squares),
        x.stride(0),
        eps,
        K=in_features,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        SPLITS=config.splits,
        SQUARES=0 if squares is None else max(16, next_power_of_2(len(squares))),
        EVEN=in_features % (config.splits * config.block_k) == 0 and num_rows % config.block_n == 0,
        BIAS=bias is not None,
        ADD=stream is not None,
        ACTIVATION=ACTIVATIONS[activation],
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        PDL=pdl,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        launch_pdl=pdl,
    )


def batch_linear(
    x: Tensor,  # [m, in]
    weight: Tensor,  # [out, in], contiguous
    bias: Tensor | None,  # [out]
    counters: Tensor,  # int32, zeros, one for each tile; left as zeros
    config: BatchConfig | None = None,
) -> Tensor:
    """x @ weight^T + bias -> [m, out], accumulated in float32."""
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    _launch(x, None, 0.0, weight, bias, out, None, None, counters, config)
    return out


def norm_batch_linear(
    stream: Stream,
    eps: float,
    weight: Tensor,  # [out, in], or [2 out, in] with an activation: gate rows, then up rows
    bias: Tensor | None,  # [out]; not with an activation
    activation: str | None,  # "silu", "gelu_tanh"
    counters: Tensor,
    config: BatchConfig | None = None,
) -> Tensor:
    """RMSNorm of the stream, times weight^T, and with an activation act(gate) * up -> [m, out]."""
    assert bias is None or activation is None
    x = stream.scaled
    assert x is not None
    num_rows = weight.shape[0] // (1 if activation is None else 2)
    out = torch.empty(x.shape[0], num_rows, dtype=x.dtype, device=x.device)
    _launch(x, stream.squares, eps, weight, bias, out, None, activation, counters, config)
    return out


def batch_linear_add(
    x: Tensor,  # [m, in]
    weight: Tensor,  # [width, in]
    bias: Tensor | None,  # [width]
    stream: Stream,
    next_norm: Tensor,  # [width] float32
    counters: Tensor,
    config: BatchConfig | None = None,
) -> None:
    """stream += x @ weight^T + bias, in place; the norm that reads it next is `next_norm`."""
    stream.norm = next_norm
    _launch(x, None, 0.0, weight, bias, stream.values, stream, None, counters, config)

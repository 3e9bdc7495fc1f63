"""Linear layers for 2 to 16 tokens: tensor cores with the weights as the tall operand.

The weight rows take the place of the tokens in the product (W x^T), so a tile of 16 token columns
wastes little. Narrow layers are split over the input as well; the program of a tile that finishes
last adds the pieces in a fixed order, so results do not depend on timing.
"""

# ruff: noqa: N803, N806 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.ops.triton.launch import cdiv, num_sms, supports_pdl, wait_for_inputs

MAX_TOKENS = 16
MIN_PIECE = 256  # elements of the input that a program takes at least
PROGRAMS_PER_SM = 2


@dataclass(frozen=True, slots=True)
class SkinnyConfig:
    """Tile shapes, and into how many pieces the input is split."""

    block_n: int
    block_k: int
    splits: int
    num_warps: int
    num_stages: int


def skinny_config(out_features: int, in_features: int, sms: int) -> SkinnyConfig:
    """As many pieces as give every multiprocessor two programs."""
    block_n = 64 if out_features >= 64 * PROGRAMS_PER_SM * sms else 32
    tiles = cdiv(out_features, block_n)
    splits = 1
    while tiles * splits < PROGRAMS_PER_SM * sms and in_features >= 2 * splits * MIN_PIECE:
        splits *= 2
    return SkinnyConfig(block_n, 128, splits, 4, 5)


@triton.jit(do_not_specialize=["num_tokens"])
def _skinny_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,
    counter_ptr,
    num_tokens,
    num_rows,
    x_stride,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    PIECE: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    tile = tl.program_id(0)
    split = tl.program_id(1)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.arange(0, BLOCK_M)
    w_rows = w_ptr + rows.to(tl.int64)[:, None] * K
    x_rows = x_ptr + tokens[:, None] * x_stride
    row_mask = (rows < num_rows)[:, None]
    token_mask = (tokens < num_tokens)[:, None]
    wait_for_inputs(PDL)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for first in range(0, PIECE, BLOCK_K):
        cols = split * PIECE + first + tl.arange(0, BLOCK_K)
        inside = (cols < K)[None, :]
        w = tl.load(w_rows + cols[None, :], mask=row_mask & inside, other=0.0)
        x = tl.load(x_rows + cols[None, :], mask=token_mask & inside, other=0.0)
        acc = tl.dot(w, tl.trans(x), acc=acc, input_precision=PRECISION)
    out_mask = row_mask & (tokens < num_tokens)[None, :]
    at = tokens[None, :] * num_rows + rows[:, None]
    if SPLITS > 1:
        partial_at = tokens[None, :].to(tl.int64) * num_rows + rows[:, None]
        size = num_tokens.to(tl.int64) * num_rows
        tl.store(partial_ptr + split * size + partial_at, acc, mask=out_mask)
        tl.debug_barrier()  # every thread's stores come before the release below
        arrived = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel", scope="gpu")
        if arrived < SPLITS - 1:
            return
        tl.store(counter_ptr + tile, 0)
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for piece in tl.static_range(SPLITS):
            piece_ptr = partial_ptr + piece * size + partial_at
            acc += tl.load(piece_ptr, mask=out_mask, other=0.0, cache_modifier=".cg")
    if BIAS:
        bias = tl.load(bias_ptr + rows, mask=rows < num_rows, other=0.0)
        acc += bias.to(tl.float32)[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=out_mask)


def skinny_linear(
    x: Tensor,  # [m, in], m <= MAX_TOKENS
    weight: Tensor,  # [out, in], contiguous
    bias: Tensor | None,  # [out]
    counters: Tensor,  # int32, zeros, at least out / block_n; left as zeros
    config: SkinnyConfig | None = None,
) -> Tensor:
    """x @ weight^T + bias -> [m, out], accumulated in float32."""
    num_tokens, in_features = x.shape
    num_rows = weight.shape[0]
    config = config or skinny_config(num_rows, in_features, num_sms(x))
    out = torch.empty(num_tokens, num_rows, dtype=x.dtype, device=x.device)
    size = config.splits * num_tokens * num_rows if config.splits > 1 else 0
    partial = torch.empty(size, dtype=torch.float32, device=x.device)
    pdl = supports_pdl(x)
    _skinny_kernel[(cdiv(num_rows, config.block_n), config.splits)](
        x,
        weight,
        bias,
        out,
        partial,
        counters,
        num_tokens,
        num_rows,
        x.stride(0),
        K=in_features,
        BLOCK_M=MAX_TOKENS,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        SPLITS=config.splits,
        BIAS=bias is not None,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        PDL=pdl,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        launch_pdl=pdl,
    )
    return out

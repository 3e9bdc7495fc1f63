"""RMSNorm (Zhang and Sennrich, 2019) over rows, with and without the residual addition."""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.ops.triton.launch import cdiv, next_power_of_2, supports_pdl, wait_for_inputs

TILE = 4096  # elements of a program's tile; small rows share a program ...
SPREAD_ROWS = 512  # ... unless there are so few that each can have its own


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    num_rows,
    x_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    cols = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + cols, mask=cols < WIDTH, other=0.0)
    wait_for_inputs(PDL)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = (rows[:, None] < num_rows) & (cols[None, :] < WIDTH)
    x = tl.load(x_ptr + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0)
    packed = rows[:, None] * WIDTH + cols[None, :]
    x = x.to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + packed, mask=mask, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + packed, rounded, mask=mask)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
    y = x * scale[:, None] * weight[None, :]
    tl.store(out_ptr + packed, y.to(out_ptr.dtype.element_ty), mask=mask)


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    width = x.shape[-1]
    rows2d = x.reshape(-1, width) if x.dim() != 2 or x.stride(1) != 1 else x
    num_rows = rows2d.shape[0]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    block = next_power_of_2(width)
    rows = max(1, TILE // block) if num_rows > SPREAD_ROWS else 1
    pdl = supports_pdl(x)
    _rms_norm_kernel[(cdiv(num_rows, rows),)](
        rows2d,
        residual,
        weight,
        out,
        num_rows,
        rows2d.stride(0),
        eps,
        WIDTH=width,
        BLOCK=block,
        ROWS=rows,
        ADD=residual is not None,
        PDL=pdl,
        num_warps=8 if block >= TILE else 4,
        launch_pdl=pdl,
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension in float32; x [..., H] may have padded rows."""
    return _launch(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`residual += x` in place, then RMSNorm of it; x [T, H], residual [T, H] contiguous."""
    return _launch(x, residual, weight, eps)

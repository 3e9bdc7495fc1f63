"""Gated activations and the tanh soft cap, one pass over their input."""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.ops.triton.helper import helper
from pagemill.ops.triton.launch import cdiv, supports_pdl, wait_for_inputs

BLOCK = 1024


@helper
def tanh(x):
    """Hyperbolic tangent by the logistic function: saturates instead of overflowing."""
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@helper
def silu(x):
    """x * sigmoid(x)."""
    return x * tl.sigmoid(x)


@helper
def gelu_tanh(x):
    """GELU, tanh approximation (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def _gated_kernel(
    x_ptr, out_ptr, width, GELU: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < width
    gate_ptr = x_ptr + row * 2 * width + cols
    gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + width, mask=mask, other=0.0).to(tl.float32)
    activated = gelu_tanh(gate) if GELU else silu(gate)
    y = activated * up
    tl.store(out_ptr + row * width + cols, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size"])
def _soft_cap_kernel(x_ptr, out_ptr, size, cap, BLOCK: tl.constexpr, PDL: tl.constexpr):
    wait_for_inputs(PDL)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
    y = cap * tanh(x / cap)
    tl.store(out_ptr + index, y.to(out_ptr.dtype.element_ty), mask=mask)


def _gated(x: Tensor, gelu: bool) -> Tensor:
    num_rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(num_rows, width, dtype=x.dtype, device=x.device)
    if num_rows:
        pdl = supports_pdl(x)
        grid = (num_rows, cdiv(width, BLOCK))
        _gated_kernel[grid](
            x.contiguous(), out, width, GELU=gelu, BLOCK=BLOCK, PDL=pdl, launch_pdl=pdl
        )
    return out


def silu_mul(x: Tensor) -> Tensor:
    """[T, 2 I] -> [T, I]: silu of the first half times the second, in float32."""
    return _gated(x, gelu=False)


def gelu_tanh_mul(x: Tensor) -> Tensor:
    """[T, 2 I] -> [T, I]: tanh-approximated GELU of the first half times the second."""
    return _gated(x, gelu=True)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """`cap * tanh(x / cap)`, of any shape."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        pdl = supports_pdl(x)
        grid = (cdiv(x.numel(), BLOCK),)
        _soft_cap_kernel[grid](
            x.contiguous(), out, x.numel(), cap, BLOCK=BLOCK, PDL=pdl, launch_pdl=pdl
        )
    return out

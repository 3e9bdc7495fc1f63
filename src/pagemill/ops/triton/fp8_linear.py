"""Linear layers in float8: activations rounded per token, then cuBLAS or, for few tokens, Triton.

The Triton kernel has the weights as the tall operand (W x^T), so 16 columns of tokens waste little.
It also serves checkpoints with a scale for each 128 inputs: every group's product is scaled on its
way into the sum, in float32.
"""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.ops.fp8 import FP8_MAX, GROUP, group_size
from pagemill.ops.triton.launch import (
    cdiv,
    has_small_shared,
    next_power_of_2,
    supports_pdl,
    wait_for_inputs,
)

FEW_TOKENS = 16  # up to these, cuBLAS leaves half of the bandwidth unused
ALIGNMENT = 16  # of both sides of a matrix, in cuBLAS
LEAST_SCALE = tl.constexpr(1e-12)
LIMIT = tl.constexpr(FP8_MAX)


@dataclass(frozen=True, slots=True)
class Fp8Config:
    """Tile shapes: output rows, tokens, inputs."""

    block_n: int
    block_m: int
    block_k: int
    num_warps: int
    num_stages: int


def fp8_config(
    num_tokens: int, out_features: int, grouped: bool, small_shared: bool = False
) -> Fp8Config:
    """Measured on an H200. Six stages need more memory than `SMALL_SHARED`."""
    if num_tokens > 64:
        return Fp8Config(128, 128, GROUP, 8, 3)
    if num_tokens > FEW_TOKENS:
        return Fp8Config(64, 64, GROUP, 4, 4)
    if grouped:
        return Fp8Config(64 if out_features >= 4096 else 32, FEW_TOKENS, GROUP, 4, 4)
    deep = out_features <= 16384 and not small_shared
    return Fp8Config(64, FEW_TOKENS, 256, 4, 6 if deep else 4)


@triton.jit
def _quantize_kernel(
    x_ptr, out_ptr, scale_ptr, x_stride, K: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_G: tl.constexpr, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A token's groups of inputs, each divided by its scale."""
    wait_for_inputs(PDL)
    row = tl.program_id(0).to(tl.int64)
    group, within = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_W)
    cols = group[:, None] * WIDTH + within[None, :]
    mask = (cols < K) & (within < WIDTH)[None, :]
    x = tl.load(x_ptr + row * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=1) / LIMIT, LEAST_SCALE)
    y = tl.minimum(tl.maximum(x / scale[:, None], -LIMIT), LIMIT)
    tl.store(out_ptr + row * K + cols, y.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(scale_ptr + row * GROUPS + group, scale, mask=group < GROUPS)


@triton.jit(do_not_specialize=["num_tokens"])
def _fp8_linear_kernel(
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, bias_ptr, out_ptr, num_tokens, num_rows,
    K: tl.constexpr, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BIAS: tl.constexpr, UPCAST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(PDL)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows, in_tokens = rows < num_rows, tokens < num_tokens
    w_rows = w_ptr + rows.to(tl.int64)[:, None] * K
    x_rows = x_ptr + tokens.to(tl.int64)[:, None] * K
    w_scales, x_scales = w_scale_ptr + rows * GROUPS, x_scale_ptr + tokens * GROUPS
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for first in range(0, K, BLOCK_K):
        cols = first + tl.arange(0, BLOCK_K)
        inside = (cols < K)[None, :]
        w = tl.load(w_rows + cols[None, :], mask=in_rows[:, None] & inside, other=0.0)
        x = tl.load(x_rows + cols[None, :], mask=in_tokens[:, None] & inside, other=0.0)
        if UPCAST:
            w, x = w.to(tl.float16), x.to(tl.float16)
        if GROUPS > 1:
            w_scale = tl.load(w_scales + first // BLOCK_K, mask=in_rows, other=0.0)
            x_scale = tl.load(x_scales + first // BLOCK_K, mask=in_tokens, other=0.0)
            acc += tl.dot(w, tl.trans(x)) * w_scale[:, None] * x_scale[None, :]
        else:
            acc = tl.dot(w, tl.trans(x), acc=acc)
    if GROUPS == 1:
        w_scale = tl.load(w_scales, mask=in_rows, other=0.0)
        acc *= w_scale[:, None] * tl.load(x_scales, mask=in_tokens, other=0.0)[None, :]
    if BIAS:
        acc += tl.load(bias_ptr + rows, mask=in_rows, other=0.0).to(tl.float32)[:, None]
    out = out_ptr + tokens.to(tl.int64)[None, :] * num_rows + rows[:, None]
    mask = in_rows[:, None] & in_tokens[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=mask)


def quantize(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """[T, in] -> float8 of the same shape and its scales [T, groups] float32."""
    num_tokens, width = x.shape
    out = torch.empty(num_tokens, width, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(num_tokens, groups, device=x.device)
    size, pdl = group_size(width, groups), supports_pdl(x)
    block_w, block_g = next_power_of_2(size), next_power_of_2(groups)
    _quantize_kernel[(num_tokens,)](
        x, out, scale, x.stride(0), K=width, GROUPS=groups, BLOCK_G=block_g, WIDTH=size,
        BLOCK_W=block_w, PDL=pdl, num_warps=8 if block_w * block_g > 4096 else 4, launch_pdl=pdl,
    )  # fmt: skip
    return out, scale


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    config: Fp8Config | None = None,
) -> Tensor:
    """`Fp8Ops.fp8_linear`."""
    num_tokens, (rows, width), groups = x.shape[0], weight.shape, scale.shape[1]
    if num_tokens == 0:
        return torch.empty(0, rows, dtype=x.dtype, device=x.device)
    q, x_scale = quantize(x if x.stride(-1) == 1 else x.contiguous(), groups)
    if config is None and _cublas_takes(x, weight, groups):
        out = torch._scaled_mm(
            q, weight.t(), x_scale, scale.view(1, rows), out_dtype=x.dtype, use_fast_accum=True
        )
        return out if bias is None else out.add_(bias)
    config = config or fp8_config(num_tokens, rows, groups > 1, has_small_shared(x))
    out = torch.empty(num_tokens, rows, dtype=x.dtype, device=x.device)
    pdl = supports_pdl(x)
    _fp8_linear_kernel[(cdiv(rows, config.block_n), cdiv(num_tokens, config.block_m))](
        q, x_scale, weight, scale, bias, out, num_tokens, rows, K=width, GROUPS=groups,
        BLOCK_N=config.block_n, BLOCK_M=config.block_m, BLOCK_K=config.block_k,
        BIAS=bias is not None, UPCAST=x.device.type == "cpu", PDL=pdl,
        num_warps=config.num_warps, num_stages=config.num_stages, launch_pdl=pdl,
    )  # fmt: skip
    return out


def _cublas_takes(x: Tensor, weight: Tensor, groups: int) -> bool:
    """One scale a row, more than a few tokens, and shapes and types that it has kernels for."""
    aligned = all(size % ALIGNMENT == 0 for size in weight.shape)
    many = x.shape[0] > FEW_TOKENS and x.device.type != "cpu"
    return many and groups == 1 and aligned and x.dtype == torch.bfloat16

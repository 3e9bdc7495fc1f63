"""QK-norm, rotary embedding (Su et al., 2021; neox halves) and the KV-cache write, in one pass."""

# ruff: noqa: N803, N806 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagemill.ops.base import HeadShape
from pagemill.ops.triton.helper import helper
from pagemill.ops.triton.launch import cdiv, next_power_of_2, supports_pdl, wait_for_inputs

BLOCK_HEADS = 8


@helper
def rope_partner(cols, HEAD_DIM: tl.constexpr):
    """The column each column is rotated with: the same place in the other half."""
    HALF: tl.constexpr = HEAD_DIM // 2
    return tl.where(cols < HALF, cols + HALF, cols - HALF)


@helper
def load_cos_sin(cos_sin_ptr, position, cols, HEAD_DIM: tl.constexpr):
    """cos and signed sin of each column's angle; columns past HEAD_DIM give zeros."""
    HALF: tl.constexpr = HEAD_DIM // 2
    inside = cols < HEAD_DIM
    at = cos_sin_ptr + position.to(tl.int64) * HEAD_DIM + tl.where(cols < HALF, cols, cols - HALF)
    cos = tl.load(at, mask=inside, other=0.0)
    sin = tl.load(at + HALF, mask=inside, other=0.0)
    return cos, tl.where(cols < HALF, -sin, sin)


@helper
def head_rms(x, eps, HEAD_DIM: tl.constexpr):
    """1 / RMS of each row of x [rows, D]."""
    return tl.rsqrt(tl.sum(x * x, axis=1) / HEAD_DIM + eps)


@helper
def to_cache_type(x, ptr, FP8: tl.constexpr):
    """x in the cache's type; saturates for fp8, whose cast does not."""
    if FP8:
        x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    return x.to(ptr.dtype.element_ty)


@triton.jit
def _qk_norm_rope_cache_kernel(
    qkv_ptr,
    positions_ptr,
    slot_mapping_ptr,
    cos_sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    q_out_ptr,
    k_cache_ptr,
    v_cache_ptr,
    qkv_stride,
    block_stride,
    head_stride,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    FP8: tl.constexpr,
    PDL: tl.constexpr,
):
    cols = tl.arange(0, BLOCK_D)
    partner = rope_partner(cols, HEAD_DIM)
    in_head = cols < HEAD_DIM
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)  # q heads, then k, then v
    is_q = heads < NUM_HEADS
    is_k = (heads >= NUM_HEADS) & (heads < NUM_HEADS + NUM_KV_HEADS)
    is_v = (heads >= NUM_HEADS + NUM_KV_HEADS) & (heads < NUM_HEADS + 2 * NUM_KV_HEADS)
    weight = tl.full((BLOCK_H, BLOCK_D), 1.0, tl.float32)
    partner_weight = weight
    if Q_NORM:
        q_weight = tl.load(q_norm_ptr + cols, mask=in_head, other=0.0)
        q_partner = tl.load(q_norm_ptr + partner, mask=in_head, other=0.0)
        weight = tl.where(is_q[:, None], q_weight[None, :], weight)
        partner_weight = tl.where(is_q[:, None], q_partner[None, :], partner_weight)
    if K_NORM:
        k_weight = tl.load(k_norm_ptr + cols, mask=in_head, other=0.0)
        k_partner = tl.load(k_norm_ptr + partner, mask=in_head, other=0.0)
        weight = tl.where(is_k[:, None], k_weight[None, :], weight)
        partner_weight = tl.where(is_k[:, None], k_partner[None, :], partner_weight)

    wait_for_inputs(PDL)
    token = tl.program_id(0).to(tl.int64)
    cos, sin = load_cos_sin(cos_sin_ptr, tl.load(positions_ptr + token), cols, HEAD_DIM)
    row_ptr = qkv_ptr + token * qkv_stride + heads[:, None] * HEAD_DIM
    mask = (is_q | is_k | is_v)[:, None] & in_head[None, :]
    raw = tl.load(row_ptr + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    turned = tl.load(row_ptr + partner[None, :], mask=mask, other=0.0).to(tl.float32)
    scale = tl.full((BLOCK_H,), 1.0, tl.float32)
    rms = head_rms(raw, eps, HEAD_DIM)
    if Q_NORM:
        scale = tl.where(is_q, rms, scale)
    if K_NORM:
        scale = tl.where(is_k, rms, scale)
    x = raw * scale[:, None] * weight
    y = turned * scale[:, None] * partner_weight
    rotated = x * cos[None, :] + y * sin[None, :]

    q_ptr = q_out_ptr + (token * NUM_HEADS + heads[:, None]) * HEAD_DIM + cols[None, :]
    tl.store(q_ptr, rotated.to(q_out_ptr.dtype.element_ty), mask=mask & is_q[:, None])
    slot = tl.load(slot_mapping_ptr + token)
    written = mask & (slot >= 0)
    page = (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * HEAD_DIM
    k_at = page + (heads - NUM_HEADS)[:, None] * head_stride + cols[None, :]
    k = to_cache_type(rotated, k_cache_ptr, FP8)
    tl.store(k_cache_ptr + k_at, k, mask=written & is_k[:, None])
    v = to_cache_type(raw, v_cache_ptr, FP8)
    v_at = k_at - NUM_KV_HEADS * head_stride
    tl.store(v_cache_ptr + v_at, v, mask=written & is_v[:, None])


def qk_norm_rope_cache(
    qkv: Tensor,  # [T, q_size + 2 kv_size]
    positions: Tensor,  # [T] int64
    slot_mapping: Tensor,  # [T] int64
    cos_sin: Tensor,  # [max_position, D] float32
    shape: HeadShape,
    k_cache: Tensor,  # [num_blocks, num_kv_heads, block_size, D]
    v_cache: Tensor,  # as k_cache
    q_norm: Tensor | None,  # [D] float32
    k_norm: Tensor | None,  # [D] float32
    eps: float,
) -> Tensor:
    """`Ops.qk_norm_rope_cache`; the cache may be float8_e4m3fn, to which k and v saturate."""
    num_tokens, head_dim = qkv.shape[0], shape.head_dim
    q = torch.empty(num_tokens, shape.num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if num_tokens == 0:
        return q
    num_rows = shape.num_heads + 2 * shape.num_kv_heads
    pdl = supports_pdl(qkv)
    _qk_norm_rope_cache_kernel[(num_tokens, cdiv(num_rows, BLOCK_HEADS))](
        qkv,
        positions,
        slot_mapping,
        cos_sin,
        q_norm,
        k_norm,
        q,
        k_cache,
        v_cache,
        qkv.stride(0),
        k_cache.stride(0),
        k_cache.stride(1),
        eps,
        NUM_HEADS=shape.num_heads,
        NUM_KV_HEADS=shape.num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=next_power_of_2(head_dim),
        BLOCK_H=BLOCK_HEADS,
        BLOCK_SIZE=k_cache.shape[2],
        Q_NORM=q_norm is not None,
        K_NORM=k_norm is not None,
        FP8=k_cache.dtype == torch.float8_e4m3fn,
        PDL=pdl,
        num_warps=2,
        launch_pdl=pdl,
    )
    return q

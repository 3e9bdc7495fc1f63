"""`Ops` in torch: the specification that every other kernel is compared with.

Correct on any device and in any floating type; nothing here waits for a CUDA device. Arithmetic is
in float32 and rounded once, to the type of the input.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pagemill.ops.base import HeadShape
from pagemill.ops.fp8 import FP8_MAX, group_size
from pagemill.ops.int8_cache import codes_and_scales, round_rows


class ReferenceOps:
    """Implements `Ops`."""

    name = "reference"

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self.rms_norm(residual.add_(x), weight, eps)

    def silu_mul(self, x: Tensor) -> Tensor:
        gate, up = x.float().chunk(2, dim=-1)
        return F.silu(gate).mul_(up).to(x.dtype)

    def gelu_tanh_mul(self, x: Tensor) -> Tensor:
        gate, up = x.float().chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh").mul_(up).to(x.dtype)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def qk_norm_rope_cache(
        self,
        qkv: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        cos_sin: Tensor,
        shape: HeadShape,
        k_cache: Tensor,
        v_cache: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
    ) -> Tensor:
        heads = qkv.view(qkv.shape[0], -1, shape.head_dim)  # [T, q + k + v heads, D]
        num_qk = shape.num_heads + shape.num_kv_heads
        qk = heads[:, :num_qk].float()
        if q_norm is not None and k_norm is not None:
            q, k = qk[:, : shape.num_heads], qk[:, shape.num_heads :]
            qk = torch.cat((self.rms_norm(q, q_norm, eps), self.rms_norm(k, k_norm, eps)), dim=1)
        qk = _rotate(qk, cos_sin[positions]).to(qkv.dtype)
        _write_pages(slot_mapping, qk[:, shape.num_heads :], k_cache, heads[:, num_qk:], v_cache)
        return qk[:, : shape.num_heads].contiguous()

    def fp8_linear(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """`Fp8Ops.fp8_linear`, with activations rounded as the kernels round them."""
        groups, width = scale.shape[1], x.shape[1]
        size = group_size(width, groups)
        parts = F.pad(x.float(), (0, groups * size - width)).view(len(x), groups, size)
        x_scale = (parts.abs().amax(dim=2, keepdim=True) / FP8_MAX).clamp_(min=1e-12)
        rounded = (parts / x_scale).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        inputs = (rounded.float() * x_scale).flatten(1)[:, :width]
        factors = scale.repeat_interleave(size, dim=1)[:, :width]
        y = F.linear(inputs, weight.float() * factors)
        return (y if bias is None else y + bias).to(x.dtype)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return torch.tanh(x / cap) * cap


def _rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + D / 2) of x [T, heads, D] by the angles of cos_sin [T, D]."""
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)  # [T, 1, D / 2]
    first, second = x.chunk(2, dim=-1)
    out = torch.empty_like(x)
    half = x.shape[-1] // 2
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


def _write_pages(
    slot_mapping: Tensor,  # [T]
    k: Tensor,  # [T, num_kv_heads, D]
    k_cache: Tensor,
    v: Tensor,
    v_cache: Tensor,
) -> None:
    block_size = k_cache.shape[2]
    if slot_mapping.device.type != "cpu":
        rows, slots, keep = _unconditional_writes(slot_mapping)
        k, v = k[rows], v[rows]
    else:
        slots, keep = slot_mapping, None
        if bool((slot_mapping < 0).any()):
            rows = slot_mapping >= 0
            slots, k, v = slot_mapping[rows], k[rows], v[rows]
    index = (slots // block_size, slots % block_size)
    for cache, values in ((k_cache, k), (v_cache, v)):
        if cache.dtype == torch.int8:
            cache, scales = codes_and_scales(cache)
            values, scale = round_rows(values)
            scales = scales.transpose(1, 2)  # [num_blocks, block_size, num_kv_heads]
            scales[index] = scale if keep is None else torch.where(keep[0], scale, scales[index])
        pages = cache.transpose(1, 2)  # [num_blocks, block_size, num_kv_heads, D]
        if cache.dtype == torch.float8_e4m3fn:
            values = values.clamp(-FP8_MAX, FP8_MAX).to(cache.dtype).view(torch.uint8)
            pages = pages.view(torch.uint8)  # torch has no indexing of float8 on CPUs
        pages[index] = values if keep is None else torch.where(keep, values, pages[index])


def _unconditional_writes(slot_mapping: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to write, their slots, and whether to write at all, without asking the device.

    Tokens that must not be written repeat the first one that is, so that several writes to one
    slot always carry the same value. `keep` is false only when there is no token to write.
    """
    valid = slot_mapping >= 0
    own = torch.arange(len(slot_mapping), device=slot_mapping.device)
    rows = torch.where(valid, own, valid.int().argmax())
    slots = slot_mapping[rows]
    return rows, slots.clamp(min=0), (slots >= 0)[:, None, None]

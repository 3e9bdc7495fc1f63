"""Cached keys and values in int8: codes and a float32 scale for each token and head.

A block holds for each head block_size * D codes and behind them block_size scales, so that kernels
read either as whole vectors. These bytes are the last two dimensions of int8 pages
[num_blocks, num_kv_heads, block_size, D + SCALE_BYTES]; whoever copies or counts whole blocks
need not know.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_BYTES = 4
MAX_CODE = 127.0
_SMALLEST = 1e-30  # a row of less is zero: the inverse of its scale might be infinite


def row_size(head_dim: int, dtype: torch.dtype) -> int:
    """The elements of a token and head in pages of this type."""
    return head_dim + SCALE_BYTES if dtype == torch.int8 else head_dim


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[.., D] -> int8 codes [.., D] and scales [..], symmetric: the greatest becomes 127."""
    x = x.float()
    top = x.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(top > _SMALLEST, MAX_CODE / top, 0.0)
    return (x * inverse).round().to(torch.int8), (top / MAX_CODE).squeeze(-1)


def codes_and_scales(pages: Tensor) -> tuple[Tensor, Tensor]:
    """Views of int8 pages: codes [.., block_size, D] and scales [.., block_size]."""
    block_size, head_dim = pages.shape[-2], pages.shape[-1] - SCALE_BYTES
    flat = pages.flatten(-2)
    codes = flat[..., : block_size * head_dim].view(*pages.shape[:-1], head_dim)
    return codes, flat[..., block_size * head_dim :].view(torch.float32)


def widen_pages(pages: Tensor) -> Tensor:
    """Int8 pages as float32 [.., block_size, D]."""
    codes, scales = codes_and_scales(pages)
    return codes * scales[..., None]


def round_pages(x: Tensor) -> Tensor:
    """[.., block_size, D] -> int8 pages."""
    codes, scales = round_rows(x)
    parts = (codes.flatten(-2), scales.contiguous().view(torch.int8))
    return torch.cat(parts, dim=-1).view(*x.shape[:-1], x.shape[-1] + SCALE_BYTES)

"""Tensors as the native module takes them: addresses, type codes, and small argument objects.

The module checks nothing, so everything here checks what the kernels rely on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagemill.ops.cpu import _native
from pagemill.ops.int8_cache import row_size

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_CACHE_TYPES = {
    torch.float32: (torch.float32, torch.float16, torch.int8),
    torch.bfloat16: (torch.bfloat16, torch.int8),
}
_CACHE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
MAX_HEAD_DIM = 256
MAX_QUERY_GROUP = 32


def type_code(x: Tensor) -> int:
    """The native code of a tensor's type. Raises TypeError for types without kernels."""
    code = _TYPES.get(x.dtype)
    if code is None:
        raise TypeError(f"the CPU kernels take float32 and bfloat16, not {x.dtype}")
    return code


def address(x: Tensor | None) -> int:
    """The address of a contiguous tensor, 0 for None."""
    if x is None:
        return 0
    assert x.is_contiguous()
    return x.data_ptr()


def float_address(x: Tensor | None) -> int:
    """The address of a contiguous float32 tensor, 0 for None."""
    assert x is None or x.dtype == torch.float32
    return address(x)


def attention_shape(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float = 1.0,
    soft_cap: float = 0.0,
    window: int = 0,
) -> _native.AttentionShape:
    """Raises ValueError for shapes beyond what the kernels' working memory holds."""
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"head size {head_dim} is above {MAX_HEAD_DIM}")
    if num_heads > MAX_QUERY_GROUP * num_kv_heads:
        raise ValueError(f"more than {MAX_QUERY_GROUP} query heads share a key-value head")
    return _native.AttentionShape(num_heads, num_kv_heads, head_dim, scale, soft_cap, window)


def cache_pages(k: Tensor, v: Tensor, head_dim: int, activations: torch.dtype) -> _native.Cache:
    """The pages of a layer, [num_blocks, num_kv_heads, block_size, D] each, see `LayerCache`.

    Raises TypeError for types that the kernels do not combine.
    """
    if k.dtype not in _CACHE_TYPES.get(activations, ()):
        raise TypeError(f"no CPU kernel has a cache of {k.dtype} beside {activations}")
    assert k.dtype == v.dtype
    assert k.shape == v.shape and k.shape[3] == row_size(head_dim, k.dtype)
    return _native.Cache(address(k), address(v), _CACHE_CODES[k.dtype], k.shape[2])

"""Decoder layers as one native call."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from pagemill.attention.base import LayerCache
from pagemill.ops.cpu import _native
from pagemill.ops.cpu.matrix import GROUP, PackedMatrix
from pagemill.ops.cpu.types import attention_shape, cache_pages, float_address
from pagemill.ops.fused import LayerParts

_GATES = {"silu": 0, "gelu_tanh": 1}


class NativeLayers:
    """Implements `WholeLayers`."""

    def __init__(self, layers: Sequence[LayerParts], workspace: _native.Workspace) -> None:
        self._layers = [_Layer(parts) for parts in layers]
        self._native = [layer.native for layer in self._layers]
        self._workspace = workspace
        # Only the owner keeps the pages alive: they are given up while the model sleeps.
        self._caches: list[ReferenceType[Tensor]] = []
        self._pages: list[_native.Cache] = []

    def takes(self, residual: Tensor, plans: Sequence[Any]) -> bool:
        return residual.dtype == torch.float32 and set(map(type, plans)) == {_native.Step}

    def run(self, residual: Tensor, caches: Sequence[LayerCache], plans: Sequence[Any]) -> None:
        keys = [cache.k for cache in caches]
        known = [held() for held in self._caches]
        if len(known) != len(keys) or not all(map(is_, known, keys)):
            self._caches = list(map(ref, keys))
            self._pages = [
                cache_pages(cache.k, cache.v, layer.head_dim, residual.dtype)
                for layer, cache in zip(self._layers, caches, strict=True)
            ]
        _native.run_layers(
            self._native, float_address(residual), plans, self._pages, self._workspace
        )


class _Layer:
    """Keeps its parts alive, whose addresses the native object holds."""

    def __init__(self, parts: LayerParts) -> None:
        self._parts = parts
        shape = parts.shape
        self.head_dim = shape.head_dim
        rope = parts.rope
        self.native = _native.Layer(
            parts.qkv.native,
            parts.o.native,
            parts.gate_up.native,
            parts.down.native,
            float_address(parts.input_norm),
            float_address(parts.after_attention),
            float_address(parts.mlp_norm),
            float_address(parts.after_mlp),
            parts.eps,
            _GATES[parts.activation],
            attention_shape(
                shape.num_heads,
                shape.num_kv_heads,
                shape.head_dim,
                parts.scale,
                parts.soft_cap,
                parts.window,
            ),
            _native.Rope(
                float_address(rope.cos_sin),
                float_address(rope.q_norm),
                float_address(rope.k_norm),
                rope.eps,
            ),
        )


def can_be_whole(parts: LayerParts) -> bool:
    """Whether the native layer takes these parts: all matrices packed in one way, whole tiles of
    gates without bias.
    """
    matrices = (parts.qkv, parts.o, parts.gate_up, parts.down)
    if not all(isinstance(matrix, PackedMatrix) for matrix in matrices):
        return False
    same = len({matrix.packed.dtype for matrix in matrices}) == 1
    return same and parts.gate_up.bias is None and parts.gate_up.shape[0] // 2 % GROUP == 0

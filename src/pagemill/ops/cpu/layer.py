"""Decoder layers as one native call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

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

    def takes(self, residual: Tensor, plans: Sequence[Any]) -> bool:
        steps = all(isinstance(plan, _native.Step) for plan in plans)
        return steps and residual.dtype == torch.float32

    def run(
        self, residual: Tensor, caches: Sequence[tuple[Tensor, Tensor]], plans: Sequence[Any]
    ) -> None:
        pairs = zip(self._layers, caches, strict=True)
        pages = [layer.pages(*cache, residual.dtype) for layer, cache in pairs]
        _native.run_layers(self._native, float_address(residual), plans, pages, self._workspace)


class _Layer:
    """Keeps its parts alive, whose addresses the native object holds."""

    def __init__(self, parts: LayerParts) -> None:
        self._parts = parts
        # Only the owner keeps the pages alive: they are given up while the model sleeps.
        self._cache: tuple[ReferenceType[Tensor], _native.Cache] | None = None
        shape = parts.shape
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

    def pages(self, k_cache: Tensor, v_cache: Tensor, dtype: torch.dtype) -> _native.Cache:
        if self._cache is None or self._cache[0]() is not k_cache:
            size = self._parts.shape.head_dim
            self._cache = ref(k_cache), cache_pages(k_cache, v_cache, size, dtype)
        return self._cache[1]


def can_be_whole(parts: LayerParts) -> bool:
    """Whether the native layer takes these parts: all matrices packed in one way, whole tiles of
    gates without bias.
    """
    matrices = (parts.qkv, parts.o, parts.gate_up, parts.down)
    if not all(isinstance(matrix, PackedMatrix) for matrix in matrices):
        return False
    same = len({matrix.packed.dtype for matrix in matrices}) == 1
    return same and parts.gate_up.bias is None and parts.gate_up.shape[0] // 2 % GROUP == 0

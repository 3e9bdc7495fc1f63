"""A decoder layer as one native call."""

from __future__ import annotations

from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from pagemill.ops.cpu import _native
from pagemill.ops.cpu.matrix import GROUP, PackedMatrix
from pagemill.ops.cpu.types import attention_shape, cache_pages, float_address
from pagemill.ops.fused import LayerParts

_GATES = {"silu": 0, "gelu_tanh": 1}


class NativeLayer:
    """Implements `WholeLayer`; keeps its parts alive, whose addresses the native object holds."""

    def __init__(self, parts: LayerParts, workspace: _native.Workspace) -> None:
        self._parts = parts
        self._workspace = workspace
        # Only the owner keeps the pages alive: they are given up while the model sleeps.
        self._cache: tuple[ReferenceType[Tensor], _native.Cache] | None = None
        shape = parts.shape
        rope = parts.rope
        self._layer = _native.Layer(
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

    def takes(self, residual: Tensor, plan: Any) -> bool:
        return isinstance(plan, _native.Step) and residual.dtype == torch.float32

    def run(self, residual: Tensor, k_cache: Tensor, v_cache: Tensor, plan: Any) -> None:
        if self._cache is None or self._cache[0]() is not k_cache:
            self._cache = ref(k_cache), cache_pages(k_cache, v_cache, residual.dtype)
        _native.run_layer(
            self._layer, float_address(residual), plan, self._cache[1], self._workspace
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

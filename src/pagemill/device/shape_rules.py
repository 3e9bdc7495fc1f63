"""Shapes of the commonest operations on tensors without memory, without torch's compiler.

Torch has rules for all of them, but on the meta device even an addition imports `torch._dynamo` and
sympy, which takes one to three seconds. What has no rule here is left to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


def _broadcast(args: Sequence[Any]) -> tuple[int, ...]:
    shape: tuple[int, ...] = np.broadcast_shapes(
        *(tuple(a.shape) for a in args if isinstance(a, Tensor))
    )
    return shape


def _arithmetic(x: Any, y: Any = None, *_: Any, **__: Any) -> Tensor:
    dtype = x.dtype if y is None else torch.result_type(x, y)
    return torch.empty(_broadcast((x, y)), dtype=dtype, device="meta")


def _like(x: Tensor, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
    return torch.empty(x.shape, dtype=dtype or x.dtype, device="meta")


def _compare(x: Any, y: Any) -> Tensor:
    return torch.empty(_broadcast((x, y)), dtype=torch.bool, device="meta")


def _where(condition: Tensor, x: Any, y: Any) -> Tensor:
    shape = _broadcast((condition, x, y))
    return torch.empty(shape, dtype=torch.result_type(x, y), device="meta")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.empty(*x.shape[:-1], weight.shape[0], dtype=x.dtype, device="meta")


def _embedding(weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> Tensor:
    shape = (*indices.shape, *weight.shape[1:])
    return torch.empty(shape, dtype=weight.dtype, device="meta")


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor | None:
    """Only integers, and from the first dimension on; None: left to torch."""
    picked = [i for i in indices if i is not None]
    if len(picked) < len(indices) or any(i.dtype in (torch.bool, torch.uint8) for i in picked):
        return None
    shape = (*_broadcast(picked), *x.shape[len(picked) :])
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _arange(
    start: int, end: int | None = None, step: int = 1, *, dtype: Any = None, **__: Any
) -> Tensor:
    numbers = range(start) if end is None else range(start, end, step)
    return torch.empty(len(numbers), dtype=dtype or torch.int64, device="meta")


def _changed(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


_Rule = Callable[..., Any]
_RULES: Mapping[Any, _Rule] = {
    **dict.fromkeys(
        (_aten.add, _aten.sub, _aten.mul, _aten.floor_divide, _aten.remainder), _arithmetic
    ),
    **dict.fromkeys((_aten.lt, _aten.le, _aten.gt, _aten.ge, _aten.eq, _aten.ne), _compare),
    **dict.fromkeys((_aten.add_, _aten.sub_, _aten.mul_, _aten.index_put_), _changed),
    **dict.fromkeys((_aten.clamp, _aten.empty_like, _aten.ones_like), _like),
    _aten.where: _where,
    _aten.arange: _arange,
    _aten.linear: _linear,
    _aten.embedding: _embedding,
    _aten.index: _index,
}


def _is_meta(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    tensors = [a for a in args if isinstance(a, Tensor)]
    if tensors:
        return any(tensor.is_meta for tensor in tensors)
    return kwargs.get("device") == torch.device("meta")


class ShapeRules(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, operations on the meta device take the rules of this module."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports dynamo to be able to skip it

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func.overloadpacket)
        if rule is not None and _is_meta(args, kwargs):
            result = rule(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)

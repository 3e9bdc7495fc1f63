"""Activations by the name that checkpoints give them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pagemill.errors import ModelLoadError
from pagemill.ops.base import Ops

Gate = Callable[[Tensor], Tensor]


def gated_activation(name: str, ops: Ops) -> Gate:
    """[T, 2 I] -> [T, I]: activation of the first half times the second. Raises ModelLoadError."""
    gates: dict[str, Gate] = {"silu": ops.silu_mul, "gelu_pytorch_tanh": ops.gelu_tanh_mul}
    if name not in gates:
        raise ModelLoadError(
            f"activation {name!r} is not supported; supported are {', '.join(gates)}"
        )
    return gates[name]


def activation(name: str) -> Gate:
    """[T, I] -> [T, I], not gated. Raises ModelLoadError."""
    tanh = partial(F.gelu, approximate="tanh")
    known: dict[str, Gate] = {
        "gelu": F.gelu,
        "gelu_new": tanh,
        "gelu_pytorch_tanh": tanh,
        "relu": torch.relu,
    }
    if name not in known:
        raise ModelLoadError(
            f"activation {name!r} is not supported; supported are {', '.join(known)}"
        )
    return known[name]

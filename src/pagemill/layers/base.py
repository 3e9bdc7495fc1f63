"""What every layer is built with: no global device, type or kernel choice."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pagemill.ops.base import Ops
from pagemill.quant.base import QuantMethod


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Handed down while a model is built."""

    device: torch.device
    dtype: torch.dtype
    ops: Ops
    quant: QuantMethod

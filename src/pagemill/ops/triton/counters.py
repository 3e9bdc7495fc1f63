"""Arrival counters for kernels whose last program adds up what the others left."""

from __future__ import annotations

import torch
from torch import Tensor

from pagemill.ops.triton.launch import next_power_of_2

INITIAL_SIZE = 65_536


class Counters:
    """Zeros on a device; kernels leave zeros behind, so all launches of a stream share them."""

    def __init__(self) -> None:
        self._tensors: dict[torch.device, Tensor] = {}
        self._outgrown: list[Tensor] = []  # captured graphs still point at them

    def get(self, device: torch.device, count: int) -> Tensor:
        """At least `count` int32 zeros. The first call may not be inside a graph's capture."""
        tensor = self._tensors.get(device)
        if tensor is None or tensor.numel() < count:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"{count} counters are needed before a graph is captured")
            if tensor is not None:
                self._outgrown.append(tensor)
            size = max(INITIAL_SIZE, next_power_of_2(count))
            tensor = torch.zeros(size, dtype=torch.int32, device=device)
            self._tensors[device] = tensor
        return tensor

"""Memory for packed weights in huge pages, where the system has them.

A step reads every weight once, so with pages of 4 KiB each page costs a miss of the translation
buffer: twice the time of a decode row. Matrices are smaller than a huge page, so many share one
mapping, which lives until the last of them is gone.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

_HUGE_PAGE = 2 << 20
_MAPPING = 64 << 20  # at least; what is never written takes no memory
_ALIGNMENT = 64


class WeightMemory:
    """Hands out tensors of zeros; nothing is handed out twice."""

    def __init__(self) -> None:
        self._mapping = torch.empty(0, dtype=torch.uint8)

    def zeros(self, size: int) -> Tensor:
        """uint8 [size], aligned to 64 bytes."""
        taken = -(-size // _ALIGNMENT) * _ALIGNMENT
        if taken > self._mapping.numel():
            self._mapping = _map(max(taken, _MAPPING))
        part, rest = self._mapping[:size], self._mapping[taken:]
        # Even an empty view would keep the whole mapping.
        self._mapping = rest if rest.numel() else torch.empty(0, dtype=torch.uint8)
        return part


def _map(size: int) -> Tensor:
    """`size` bytes from the start of a huge page on."""
    # Private: shared memory, which is the default, gets no huge pages.
    memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # Python knows of them, this kernel may not
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE_PAGE
    return whole[start : start + size]

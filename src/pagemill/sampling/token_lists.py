"""Short lists of token ids, one per slot, as one padded table on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pagemill.device.base import Device

_MIN_WIDTH = 8


class TokenLists:
    """`token_ids` [slots, width] with a float for each in `values`; padding is token 0, value 0.

    The table is made when first used and widened when a list is longer than any before.
    """

    def __init__(self, num_slots: int, device: Device) -> None:
        self._num_slots = num_slots
        self._device = device
        self.token_ids = torch.zeros(0, 0, dtype=torch.int64)
        self.values = torch.zeros(0, 0)

    def set(self, slot: int, token_ids: Sequence[int], values: Sequence[float]) -> None:
        """Replace the list of one slot."""
        self._widen(len(token_ids))
        width = self.token_ids.shape[1]
        ids, floats = np.zeros(width, np.int64), np.zeros(width, np.float32)
        ids[: len(token_ids)] = token_ids
        floats[: len(values)] = values
        self.token_ids[slot] = self._device.from_numpy(ids)
        self.values[slot] = self._device.from_numpy(floats)

    def _widen(self, needed: int) -> None:
        old = self.token_ids.shape[1]
        if self.token_ids.numel() and needed <= old:
            return
        width = max(_MIN_WIDTH, 1 << (needed - 1).bit_length())
        self.token_ids = self._wider(self.token_ids, width)
        self.values = self._wider(self.values, width)

    def _wider(self, table: Tensor, width: int) -> Tensor:
        shape, device = (self._num_slots, width), self._device.torch_device
        wider = torch.zeros(shape, dtype=table.dtype, device=device)
        if table.numel():
            wider[:, : table.shape[1]] = table
        return wider

"""The last tokens of each slot, kept on the device for features that look back."""

from __future__ import annotations

import torch
from torch import Tensor

from pagemill.device.base import Device
from pagemill.sampling.base import AcceptedTokens


class TokenHistory:
    """A ring of `window` tokens per slot: place p of a sequence is at column p % window."""

    def __init__(self, num_slots: int, window: int, device: Device) -> None:
        # The row after the last takes what is not to be kept: shapes stay the same at every step.
        self.tokens = torch.zeros(
            num_slots + 1, window, dtype=torch.int32, device=device.torch_device
        )
        self._device = device
        self._num_slots = num_slots
        self._window = window

    def fill(self, slot: int, token_ids: Tensor) -> None:
        """Set a slot's sequence, of which the last `window` of `token_ids` [m] are kept."""
        end = len(token_ids)
        start = max(0, end - self._window)
        place = torch.arange(start, end, device=self.tokens.device) % self._window
        self.tokens[slot, place] = token_ids[start:].to(torch.int32)

    def append(self, accepted: AcceptedTokens) -> None:
        """Add what a step yielded."""
        offset = torch.arange(accepted.tokens.shape[1], device=self.tokens.device)
        is_kept = offset < accepted.num_tokens.unsqueeze(1)
        slots = torch.where(is_kept, accepted.slots.unsqueeze(1), self._num_slots)
        place = (accepted.index.unsqueeze(1) + offset) % self._window
        self.tokens[slots, place] = accepted.tokens.to(torch.int32)

    def read(self, slots: Tensor, index: Tensor) -> Tensor:
        """The tokens at places `index` [L, m] of the sequences in `slots` [L], int64 [L, m]."""
        return self.tokens[slots.unsqueeze(1), index % self._window].long()

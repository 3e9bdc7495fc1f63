"""`allowed_token_ids`: only these tokens may be sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from pagemill.device.base import Device
from pagemill.sampling.base import AcceptedTokens, LogitRows
from pagemill.sampling.bitmask import apply_bitmask, num_words, pack_bits
from pagemill.scheduler.batch import Admission


class AllowedTokens:
    """Implements `LogitsProcessor`. Holds a bit set per slot from the first use on."""

    def __init__(self, num_slots: int, vocab_size: int, device: Device) -> None:
        self._shape = num_slots, num_words(vocab_size)
        self._vocab_size = vocab_size
        self._device = device
        self._bits: Tensor | None = None  # [slots, words] int32

    def add(self, admission: Admission) -> bool:
        allowed = admission.params.allowed_token_ids
        if allowed is None:
            return False
        if self._bits is None:
            device = self._device.torch_device
            self._bits = torch.zeros(self._shape, dtype=torch.int32, device=device)
        bits = pack_bits(allowed, self._vocab_size)
        self._bits[admission.slot] = self._device.from_numpy(bits)
        return True

    def remove(self, slot: int) -> None:
        """The bits are overwritten by the next ones."""

    def apply(self, logits: Tensor, rows: LogitRows) -> None:
        assert self._bits is not None
        apply_bitmask(logits, self._bits[rows.slots])

    def observe(self, accepted: AcceptedTokens) -> None:
        """What is allowed does not depend on the text."""

"""`logit_bias`: numbers added to the logits of some tokens."""

from __future__ import annotations

from torch import Tensor

from pagemill.device.base import Device
from pagemill.sampling.base import AcceptedTokens, LogitRows
from pagemill.sampling.token_lists import TokenLists
from pagemill.scheduler.batch import Admission


class LogitBias:
    """Implements `LogitsProcessor`."""

    def __init__(self, num_slots: int, device: Device) -> None:
        self._lists = TokenLists(num_slots, device)

    def add(self, admission: Admission) -> bool:
        bias = admission.params.logit_bias
        if not bias:
            return False
        self._lists.set(admission.slot, list(bias), list(bias.values()))
        return True

    def remove(self, slot: int) -> None:
        """The list is overwritten by the next one."""

    def apply(self, logits: Tensor, rows: LogitRows) -> None:
        lists = self._lists
        logits.scatter_add_(1, lists.token_ids[rows.slots], lists.values[rows.slots])

    def observe(self, accepted: AcceptedTokens) -> None:
        """A bias does not depend on the text."""

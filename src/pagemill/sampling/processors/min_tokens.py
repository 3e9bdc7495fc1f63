"""`min_tokens`: nothing that ends the generation before so many tokens are generated."""

from __future__ import annotations

import torch
from torch import Tensor

from pagemill.device.base import Device
from pagemill.sampling.base import SUPPRESSED, AcceptedTokens, LogitRows
from pagemill.sampling.state import SamplingState
from pagemill.sampling.token_lists import TokenLists
from pagemill.scheduler.batch import Admission


class MinTokens:
    """Implements `LogitsProcessor`. What ends a generation are its EOS ids and stop_token_ids."""

    def __init__(self, num_slots: int, device: Device, state: SamplingState) -> None:
        self._ends = TokenLists(num_slots, device)
        self._min_tokens = torch.zeros(num_slots, dtype=torch.int64, device=device.torch_device)
        self._state = state

    def add(self, admission: Admission) -> bool:
        params = admission.params
        # With ignore_eos the EOS ids do not end anything, but callers expect not to see them.
        ends = sorted({*params.eos_token_ids, *(params.stop_token_ids or ())})
        if not params.min_tokens or not ends:
            return False
        self._ends.set(admission.slot, ends, [SUPPRESSED] * len(ends))
        self._min_tokens[admission.slot] = params.min_tokens
        return True

    def remove(self, slot: int) -> None:
        """The list is overwritten by the next one."""

    def apply(self, logits: Tensor, rows: LogitRows) -> None:
        num_generated = rows.index - self._state.prompt_len[rows.slots]
        too_few = num_generated < self._min_tokens[rows.slots]
        values = self._ends.values[rows.slots] * too_few.unsqueeze(1)
        logits.scatter_add_(1, self._ends.token_ids[rows.slots], values)

    def observe(self, accepted: AcceptedTokens) -> None:
        """The place of a token says how many came before it."""

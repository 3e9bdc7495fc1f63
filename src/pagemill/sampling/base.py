"""What the sampler and its processors work on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pagemill.scheduler.batch import Admission

# Added where a token must lose against every other token but not against one that a grammar
# forbids: a request whose every allowed token is suppressed still gets an allowed one.
SUPPRESSED = -1e30


@dataclass(slots=True)
class LogitRows:
    """Whose logits the rows of a [L, vocab] tensor are.

    A row with drafts has one logits row for its last known token and one after each draft;
    `num_preceding` of its `drafts` come before the token to be sampled.
    """

    host_slots: NDArray[np.int64]  # [L]
    slots: Tensor  # [L] int64
    index: Tensor  # [L] int64, place in the sequence of the token to be sampled
    drafts: Tensor | None = None  # [L, k] int64
    num_preceding: Tensor | None = None  # [L] int64

    def part(self, at: slice) -> LogitRows:
        """Consecutive rows."""
        return replace(self._on_device(at), host_slots=self.host_slots[at])

    def take(self, chosen: NDArray[np.int64], chosen_on_device: Tensor) -> LogitRows:
        """The rows `chosen`, given twice."""
        return replace(self._on_device(chosen_on_device), host_slots=self.host_slots[chosen])

    def _on_device(self, at: Tensor | slice) -> LogitRows:
        return LogitRows(
            host_slots=self.host_slots,
            slots=self.slots[at],
            index=self.index[at],
            drafts=None if self.drafts is None else self.drafts[at],
            num_preceding=None if self.num_preceding is None else self.num_preceding[at],
        )


@dataclass(slots=True)
class AcceptedTokens:
    """What a step added to its rows: `tokens[i, :num_tokens[i]]` from place `index[i]` on."""

    host_slots: NDArray[np.int64]  # [n]
    slots: Tensor  # [n] int64
    tokens: Tensor  # [n, 1 + k] int64
    num_tokens: Tensor  # [n] int64
    index: Tensor  # [n] int64


class LogitsProcessor(Protocol):
    """One sampling feature for all slots; its state is on the device.

    `apply` is called only with the rows that use it, and writes `logits` in place.
    """

    def add(self, admission: Admission) -> bool:
        """Set the slot up for a request; False when the request does not use the feature."""
        ...

    def remove(self, slot: int) -> None:
        """The slot no longer uses the feature."""
        ...

    def apply(self, logits: Tensor, rows: LogitRows) -> None:
        """Change float32 logits [L, vocab]."""
        ...

    def observe(self, accepted: AcceptedTokens) -> None:
        """Take note of sampled tokens; called when some row of the step uses the feature."""
        ...

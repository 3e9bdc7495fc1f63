"""What the runner asks of a method that guesses tokens."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Speculator(Protocol):
    """Proposes the same number of drafts for every row; they never leave the device."""

    max_drafts: int

    def propose(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Drafts [n, max_drafts] int64 for sequences [n, width] of the first `lengths` [n] tokens.

        Every draft is a token of the vocabulary: a bad guess costs time, never a wrong token.
        """
        ...

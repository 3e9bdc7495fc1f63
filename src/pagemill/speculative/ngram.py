"""Prompt lookup: what followed the last few tokens when they occurred before.

Saxena, "Prompt lookup decoding" (2023): the longest of the n-grams that end the text is looked up
in the text itself. Done for all rows at once on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_NGRAM = 3


class NgramSpeculator:
    """Implements `Speculator`. Prefers longer matches, then later ones."""

    def __init__(self, max_drafts: int, max_ngram: int = MAX_NGRAM) -> None:
        self.max_drafts = max_drafts
        self._max_ngram = max_ngram

    def propose(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        end = self._best_match(tokens, lengths)
        # Near the end of the text the continuation is short; a period of the text is assumed then.
        period = lengths.unsqueeze(1) - 1 - end  # [n, 1], 0 without a match
        step = torch.arange(self.max_drafts, device=tokens.device) % period.clamp(min=1)
        place = torch.where(period > 0, end + 1 + step, end)
        return tokens.gather(1, place).long()

    def _best_match(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Where the best earlier match ends, [n, 1]; the last place when there is none."""
        width = tokens.shape[1]
        last = (lengths - 1).clamp(min=0).unsqueeze(1)
        place = torch.arange(width, device=tokens.device)
        matches = place < last  # [n, width] ends of matches of the n-gram looked at
        best = torch.full_like(last, -1)
        for back in range(min(self._max_ngram, width)):
            wanted = tokens.gather(1, (last - back).clamp(min=0))
            earlier = torch.roll(tokens, back, dims=1) if back else tokens
            matches = matches & (earlier == wanted) & (place >= back) & (last >= back)
            latest = torch.where(matches, place, -1).amax(dim=1, keepdim=True)
            best = torch.where(latest >= 0, latest, best)
        return torch.where(best >= 0, best, last)

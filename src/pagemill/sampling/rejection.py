"""Which drafts of a step stand, for drafts that are certain (a draft model of probability one).

Rejection sampling (Leviathan, Kalman and Matias, "Fast inference from transformers via speculative
decoding", ICML 2023) accepts draft x with probability p(x) and otherwise draws from p without x.
Where the draft is certain, that is one draw from p: it is x with probability p(x), and any other
outcome is distributed as p without x. So the draws of all places are made as if there were no
drafts, and those after the first that differs from its draft are dropped. With noise that depends
on the place only, the tokens are the very ones that come without speculation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def count_accepted(tokens: Tensor, drafts: Tensor, num_drafts: Tensor) -> Tensor:
    """How many drafts stand in each row, int64 [n].

    `tokens` [n, 1 + k] are the draws after each draft, `drafts` [n, k] what was assumed, of which
    the first `num_drafts` [n] were.
    """
    place = torch.arange(drafts.shape[1], device=drafts.device)
    matches = (tokens[:, :-1] == drafts) & (place < num_drafts.unsqueeze(1))
    return matches.long().cumprod(dim=1).sum(dim=1)

"""Log-probabilities of the model's own distribution, before temperature and every processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ROWS = 256


@dataclass(slots=True)
class TopLogprobs:
    """Column 0 is the token asked for, then the top N in falling order."""

    token_ids: Tensor  # [L, 1 + top] int64
    logprobs: Tensor  # [L, 1 + top] float32
    ranks: Tensor  # [L] int64, 1 for the most likely


def top_logprobs(logits: Tensor, tokens: Tensor, top: int) -> TopLogprobs:
    """For float32 logits [L, vocab] and the tokens [L] that were taken."""
    tokens = tokens.unsqueeze(1)
    taken = logits.gather(1, tokens)
    best = logits.topk(top, dim=1)
    total = logits.logsumexp(dim=1, keepdim=True)
    return TopLogprobs(
        token_ids=torch.cat((tokens, best.indices), dim=1),
        logprobs=torch.cat((taken, best.values), dim=1) - total,
        ranks=(logits > taken).sum(dim=1) + 1,
    )


def prompt_logprobs(
    hidden: Tensor, targets: Tensor, top: int, compute_logits: Callable[[Tensor], Tensor]
) -> TopLogprobs:
    """For hidden states [L, hidden] and the prompt tokens [L] that follow them.

    The logits of all positions may not fit into memory, so they are made chunk by chunk.
    """
    chunks = [
        top_logprobs(compute_logits(rows), tokens, top)
        for rows, tokens in zip(
            torch.split(hidden, _CHUNK_ROWS), torch.split(targets, _CHUNK_ROWS), strict=True
        )
    ]
    return TopLogprobs(
        token_ids=torch.cat([c.token_ids for c in chunks]),
        logprobs=torch.cat([c.logprobs for c in chunks]),
        ranks=torch.cat([c.ranks for c in chunks]),
    )

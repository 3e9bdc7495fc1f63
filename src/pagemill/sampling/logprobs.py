"""Log-probabilities of the model's own distribution, before temperature and every processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    @classmethod
    def join(cls, parts: Sequence[TopLogprobs]) -> TopLogprobs:
        """The rows of all parts, of which there is at least one."""
        return cls(
            token_ids=torch.cat([p.token_ids for p in parts]),
            logprobs=torch.cat([p.logprobs for p in parts]),
            ranks=torch.cat([p.ranks for p in parts]),
        )


def top_logprobs(logits: Tensor, tokens: Tensor, top: int, rows_at_once: int) -> TopLogprobs:
    """For logits [L, vocab] of any type and the tokens [L] that were taken."""
    parts = zip(torch.split(logits, rows_at_once), torch.split(tokens, rows_at_once), strict=True)
    return TopLogprobs.join([_top_logprobs(rows.float(), taken, top) for rows, taken in parts])


def _top_logprobs(logits: Tensor, tokens: Tensor, top: int) -> TopLogprobs:
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
    hidden: Tensor,
    targets: Tensor,
    top: int,
    compute_logits: Callable[[Tensor], Tensor],
    rows_at_once: int,
) -> TopLogprobs:
    """For hidden states [L, hidden] and the prompt tokens [L] that follow them.

    The logits of all positions may not fit into memory, so they are made chunk by chunk.
    """
    parts = zip(torch.split(hidden, _CHUNK_ROWS), torch.split(targets, _CHUNK_ROWS), strict=True)
    return TopLogprobs.join(
        [top_logprobs(compute_logits(rows), taken, top, rows_at_once) for rows, taken in parts]
    )

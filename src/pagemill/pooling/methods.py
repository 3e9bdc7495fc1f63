"""Which of a row's hidden states make its vector. Rows are packed without padding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pagemill.config.pooling import Method

# (hidden [T, H], first token of each row [n], token behind each row [n], tokens of these rows) ->
# [n, H]. The last is known to the host, which need not wait for the device to count them.
Pool = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def first_token(hidden: Tensor, starts: Tensor, ends: Tensor, num_tokens: int) -> Tensor:
    """The state of CLS."""
    return hidden[starts]


def last_token(hidden: Tensor, starts: Tensor, ends: Tensor, num_tokens: int) -> Tensor:
    """The only one that has seen a decoder's whole text."""
    return hidden[ends - 1]


def mean(hidden: Tensor, starts: Tensor, ends: Tensor, num_tokens: int) -> Tensor:
    """The mean over all tokens, in float32."""
    lengths = ends - starts
    numbers = torch.arange(len(starts), device=hidden.device)
    rows = torch.repeat_interleave(numbers, lengths, output_size=num_tokens)
    tokens = _ranges(starts, lengths, rows)
    sums = torch.zeros(len(starts), hidden.shape[1], device=hidden.device)
    sums.index_add_(0, rows, hidden[tokens].float())
    return (sums / lengths.unsqueeze(1)).to(hidden.dtype)


def _ranges(starts: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
    """starts[0], starts[0] + 1, …, then the same from starts[1] on."""
    before = lengths.cumsum(0) - lengths
    return torch.arange(len(rows), device=rows.device) + (starts - before)[rows]


METHODS: dict[Method, Pool] = {"cls": first_token, "last": last_token, "mean": mean}

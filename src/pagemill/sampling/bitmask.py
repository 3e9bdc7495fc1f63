"""Restrict logits to the tokens of a bit set: bit t % 32 of word t // 32 allows token t."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORD_BITS = 32


def num_words(vocab_size: int) -> int:
    return -(-vocab_size // WORD_BITS)


def pack_bits(token_ids: list[int], vocab_size: int) -> NDArray[np.int32]:
    """The bit set of some tokens, [words]."""
    allowed = np.zeros(num_words(vocab_size) * WORD_BITS, np.bool_)
    allowed[token_ids] = True
    return np.packbits(allowed, bitorder="little").view(np.int32)


def apply_bitmask(logits: Tensor, bitmask: Tensor) -> None:
    """Set logits [L, vocab] to -inf where int32 `bitmask` [L, words] has no bit.

    Tokens beyond the last word are not allowed.
    """
    bits = torch.arange(WORD_BITS, dtype=torch.int32, device=logits.device)
    forbidden = ((bitmask.unsqueeze(2) >> bits) & 1).flatten(1) == 0
    width = min(forbidden.shape[1], logits.shape[1])
    logits[:, :width].masked_fill_(forbidden[:, :width], -torch.inf)
    logits[:, width:] = -torch.inf

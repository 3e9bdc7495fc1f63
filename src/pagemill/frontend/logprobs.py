"""From the engine's arrays of log-probabilities to tokens with their text."""

from __future__ import annotations

import numpy as np

from pagemill.engine.messages import LogprobsChunk
from pagemill.frontend.outputs import TokenLogprob, TokenLogprobs
from pagemill.frontend.tokenizer import Tokenizer


def read_logprobs(chunk: LogprobsChunk, tokenizer: Tokenizer | None) -> list[TokenLogprobs]:
    """One entry for each position. Without a tokenizer the tokens have no text.

    The engine gives the chosen token first, then the top N in order; only the chosen token's rank
    is sent, because the others' is their place.
    """
    shape = chunk.num_positions, chunk.width
    token_ids = np.frombuffer(chunk.token_ids, "<i4").reshape(shape).tolist()
    logprobs = np.frombuffer(chunk.logprobs, "<f4").reshape(shape).tolist()
    ranks = np.frombuffer(chunk.ranks, "<i4").tolist()
    return [
        _position(ids, values, rank, tokenizer)
        for ids, values, rank in zip(token_ids, logprobs, ranks, strict=True)
    ]


def _position(
    token_ids: list[int], logprobs: list[float], rank: int, tokenizer: Tokenizer | None
) -> TokenLogprobs:
    ranks = [rank, *range(1, len(token_ids))]
    entries = [
        _entry(token_id, logprob, place, tokenizer)
        for token_id, logprob, place in zip(token_ids, logprobs, ranks, strict=True)
    ]
    return TokenLogprobs(chosen=entries[0], top=entries[1:])


def _entry(token_id: int, logprob: float, rank: int, tokenizer: Tokenizer | None) -> TokenLogprob:
    data = b"" if tokenizer is None else tokenizer.token_bytes[token_id]
    return TokenLogprob(token_id, data.decode(errors="replace"), data, logprob, rank)

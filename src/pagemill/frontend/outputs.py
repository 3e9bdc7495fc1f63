"""What the frontend hands to the API: text, tokens and log-probabilities, choice by choice."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pagemill.engine.messages import FinishReason
from pagemill.errors import GrammarError, InvalidParams, RequestError


@dataclass(slots=True)
class TokenLogprob:
    """One token with its log-probability (natural logarithm) and rank, 1 for the most likely."""

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float
    rank: int


@dataclass(slots=True)
class TokenLogprobs:
    """The log-probabilities at one position: of the token that is there, and of the top N."""

    chosen: TokenLogprob
    top: list[TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class Prompt:
    """A prompt ready for the engine. `text` is None when the caller gave token ids."""

    token_ids: list[int]
    text: str | None = None
    is_checked: bool = False  # the ids are known to be in the vocabulary
    second_text: int = 0  # of a pair of texts: where the second begins
    _packed: bytes = field(default=b"", init=False, repr=False, compare=False)

    def packed_ids(self) -> bytes:
        """The ids as they travel, little-endian int32; `token_ids` may not change afterwards."""
        if not self._packed:  # of a list `struct` makes it in a third of numpy's time
            self._packed = struct.pack(f"<{len(self.token_ids)}i", *self.token_ids)
        return self._packed


@dataclass(slots=True)
class ChoiceUpdate:
    """What came newly for one choice (0 to n - 1); the last one has a `finish_reason`.

    `text` is the new text, whole characters only. `token_ids` and `logprobs` cover the tokens
    whose text is released or held back since the update before, so concatenating all updates
    gives the whole output. `stop_reason` is the stop string or stop token id that matched.
    `prompt_logprobs`, when asked for, comes complete on the first update: one entry per prompt
    token, None for the first. `error` says why a choice ended with finish_reason "error".
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    scheduled_time: float | None = None  # monotonic seconds of the first step with this choice
    num_preemptions: int = 0
    pooled: bytes = b""  # float32, of a request for vectors: all of them, on its only update
    error_param: str | None = None  # the request's field at fault; None: the engine has failed


def refusal(error: str | None, param: str | None) -> RequestError | None:
    """What the engine found wrong with a request, None when the request is not at fault."""
    if param is None:
        return None
    kind = GrammarError if param == "structured_outputs" else InvalidParams
    return kind(error or "the request cannot be served", param)


@dataclass(slots=True)
class PooledOutput:
    """The answer to a request for vectors."""

    values: NDArray[np.float32]  # [width], or [num_tokens, width] when every token has one
    num_cached_tokens: int = 0
    scheduled_time: float | None = None  # monotonic seconds of the first step with this prompt

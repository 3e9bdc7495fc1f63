"""What came of a scheduled step, on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class RowLogprobs:
    """Log-probabilities for sampled tokens; layout as `LogprobsChunk`, padded to the widest row."""

    token_ids: NDArray[np.int32]  # [n, 1 + max_drafts, 1 + top]
    logprobs: NDArray[np.float32]  # [n, 1 + max_drafts, 1 + top]
    ranks: NDArray[np.int32]  # [n, 1 + max_drafts]


@dataclass(slots=True)
class PromptLogprobs:
    """Log-probabilities of the prompt tokens that follow a row's query tokens."""

    token_ids: NDArray[np.int32]  # [num_positions, 1 + top]
    logprobs: NDArray[np.float32]  # [num_positions, 1 + top]
    ranks: NDArray[np.int32]  # [num_positions]


@dataclass(slots=True)
class StepResult:
    """What a step produced, rows in the batch's order.

    Row `i` yields `token_ids[i, :num_tokens[i]]`: nothing when it does not sample, one token, or
    one more than the accepted drafts.
    """

    token_ids: NDArray[np.int32]  # [n, 1 + max_drafts]
    num_tokens: NDArray[np.int32]  # [n]
    logprobs: RowLogprobs | None = None
    prompt_logprobs: dict[int, PromptLogprobs] | None = None  # by row
    # By row: the vector [width], or those of the row's query tokens [num_query, width].
    pooled: dict[int, NDArray[np.float32]] | None = None

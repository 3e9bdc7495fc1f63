"""The seam between the engine loop and whatever runs the model: one process, many, or a fake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pagemill.engine.messages import EngineInfo
from pagemill.scheduler.batch import Batch


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


class PendingResult(Protocol):
    """A result that the device has still to produce."""

    def wait(self) -> StepResult:
        """Block until the step is done."""
        ...


class Executor(Protocol):
    """Runs batches in order. Neither call blocks on the device."""

    @property
    def info(self) -> EngineInfo: ...

    def forward(self, batch: Batch) -> None:
        """Enqueue the model's forward pass."""
        ...

    def sample(self, batch: Batch, bitmask: NDArray[np.int32] | None = None) -> PendingResult:
        """Enqueue sampling. `bitmask` is [len(grammar_rows), ceil(vocab / 32)], 1 = allowed."""
        ...

    def control(self, method: str, args: list[Any]) -> Any:
        """Run a rarely used operation (sleep, wake, profile) between steps."""
        ...

    def shutdown(self) -> None: ...

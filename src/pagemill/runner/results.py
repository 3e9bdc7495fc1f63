"""The results of a step on their way to the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pagemill.device.base import Device, Event, Task
from pagemill.runner.prompt_texts import PromptSpan
from pagemill.sampling.logprobs import TopLogprobs
from pagemill.scheduler.result import PromptLogprobs, RowLogprobs, StepResult


@dataclass(slots=True)
class StepOutput:
    """Host memory that is filled when `event` has come."""

    tokens: Tensor  # [n, 1 + max_drafts] int32
    num_tokens: Tensor | NDArray[np.int32]  # [n]
    row_logprobs: PlacedLogprobs | None
    prompt_logprobs: list[tuple[PromptSpan, TopLogprobs]]
    event: Event


@dataclass(slots=True)
class PlacedLogprobs:
    """Log-probabilities of some rows of logits, and where these are in [n, 1 + max_drafts]."""

    row: NDArray[np.int64]  # [L]
    offset: NDArray[np.int64]  # [L]
    values: TopLogprobs  # [L]


class PendingStep:
    """Implements `PendingResult`: the device's tasks of one step."""

    def __init__(self, forward: Task[None], sample: Task[StepOutput]) -> None:
        self._forward = forward
        self._sample = sample

    def wait(self) -> StepResult:
        """Raises what the forward pass or sampling raised."""
        # Woken once, when all is done: to wake up takes a lock from the thread that computes.
        try:
            output = self._sample.result()
        except BaseException:
            self._forward.result()  # without it there was nothing to sample
            raise
        output.event.synchronize()
        tokens = output.tokens.numpy()
        num_tokens = output.num_tokens
        placed = output.row_logprobs
        return StepResult(
            token_ids=tokens,
            num_tokens=num_tokens if isinstance(num_tokens, np.ndarray) else num_tokens.numpy(),
            logprobs=None if placed is None else _place(placed, tokens.shape),
            prompt_logprobs={s.row: _cut(v, s.top) for s, v in output.prompt_logprobs} or None,
        )


def download_logprobs(values: TopLogprobs, device: Device) -> TopLogprobs:
    """Enqueue the copy to the host."""
    return TopLogprobs(
        token_ids=download(values.token_ids.int(), device),
        logprobs=download(values.logprobs, device),
        ranks=download(values.ranks.int(), device),
    )


def download(tensor: Tensor, device: Device) -> Tensor:
    """Enqueue the copy of a tensor to new host memory."""
    out = device.staging(tuple(tensor.shape), tensor.dtype)
    device.download(tensor, out)
    return out


def _place(placed: PlacedLogprobs, shape: tuple[int, ...]) -> RowLogprobs:
    width = placed.values.token_ids.shape[1]
    at = placed.row, placed.offset
    token_ids = np.zeros((*shape, width), np.int32)
    logprobs = np.zeros((*shape, width), np.float32)
    ranks = np.zeros(shape, np.int32)
    token_ids[at] = placed.values.token_ids.numpy()
    logprobs[at] = placed.values.logprobs.numpy()
    ranks[at] = placed.values.ranks.numpy()
    return RowLogprobs(token_ids, logprobs, ranks)


def _cut(values: TopLogprobs, top: int) -> PromptLogprobs:
    """Only as many columns as the row asked for."""
    return PromptLogprobs(
        values.token_ids.numpy()[:, : 1 + top],
        values.logprobs.numpy()[:, : 1 + top],
        values.ranks.numpy(),
    )

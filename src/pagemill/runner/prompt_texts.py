"""The prompts whose log-probabilities are wanted, kept on the host to know what follows a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pagemill.runner.inputs import BatchLayout
from pagemill.scheduler.batch import Admission, Batch


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """Query tokens of one row of a batch that have a prompt token after them."""

    row: int
    first_token: int  # among the batch's packed tokens
    targets: NDArray[np.int32]  # [num_positions] the prompt tokens that follow
    top: int


class PromptTexts:
    """Texts by slot, of requests with `prompt_logprobs`."""

    def __init__(self, vocab_size: int) -> None:
        self._admissions: dict[int, Admission] = {}
        self._vocab_size = vocab_size

    def admit(self, admitted: Sequence[Admission]) -> None:
        for admission in admitted:
            self._admissions.pop(admission.slot, None)
            if admission.params.prompt_logprobs is not None:
                self._admissions[admission.slot] = admission

    def spans(self, batch: Batch, layout: BatchLayout) -> list[PromptSpan]:
        """What to score in this batch: a loop over the rows that want it only."""
        if batch.prompt_logprobs is None:
            return []
        rows = np.flatnonzero(batch.prompt_logprobs >= 0).tolist()
        return [self._span(batch, layout, row) for row in rows]

    def _span(self, batch: Batch, layout: BatchLayout, row: int) -> PromptSpan:
        admission = self._admissions[int(batch.slots[row])]
        start = int(batch.start[row])
        end = min(start + int(batch.num_query[row]), admission.prompt_len - 1)
        asked = admission.params.prompt_logprobs
        assert asked is not None
        return PromptSpan(
            row=row,
            first_token=int(layout.query_start[row]),
            targets=admission.token_ids[start + 1 : end + 1],
            top=self._vocab_size if asked < 0 else asked,
        )

"""The numbers that say how each slot samples, as columns on the device."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.ops.sampling import SlotSampling
from pagemill.params import SamplingParams
from pagemill.scheduler.batch import Admission


class Column(IntEnum):
    TEMPERATURE = 0
    TOP_P = 1
    TOP_K = 2  # exact in float32: a vocabulary has fewer than 2^24 tokens
    MIN_P = 3
    PRESENCE = 4
    FREQUENCY = 5
    REPETITION = 6


class SamplingState:
    """One row per slot, written when a request is admitted."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.columns = torch.zeros(num_slots, len(Column), device=device)  # float32
        self.seeds = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.prompt_len = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._vocab_size = vocab_size

    @property
    def by_slot(self) -> SlotSampling:
        """What drawing needs of the slots; views."""
        return SlotSampling(
            temperature=self.columns[:, Column.TEMPERATURE],
            top_k=self.columns[:, Column.TOP_K],
            top_p=self.columns[:, Column.TOP_P],
            min_p=self.columns[:, Column.MIN_P],
            seeds=self.seeds,
        )

    def pack(self, admitted: Sequence[Admission]) -> dict[str, NDArray[np.generic]]:
        """What `admit` needs on the device."""
        values = [self._values(a.params) for a in admitted]
        seeds = np.array([a.seed & (2**64 - 1) for a in admitted], np.uint64)
        return {
            "admitted_columns": np.array(values, np.float32).ravel(),
            "admitted_seeds": seeds.view(np.int64),
            "admitted_prompt_len": np.array([a.prompt_len for a in admitted], np.int64),
        }

    def admit(self, slots: Tensor, fields: dict[str, Tensor]) -> None:
        """Write the rows of the requests that take `slots` [a]."""
        self.columns[slots] = fields["admitted_columns"].view(-1, len(Column))
        self.seeds[slots] = fields["admitted_seeds"]
        self.prompt_len[slots] = fields["admitted_prompt_len"]

    def _values(self, params: SamplingParams) -> tuple[float, ...]:
        return (
            params.temperature,
            params.top_p,
            min(params.top_k, self._vocab_size) or self._vocab_size,
            params.min_p,
            params.presence_penalty,
            params.frequency_penalty,
            params.repetition_penalty,
        )

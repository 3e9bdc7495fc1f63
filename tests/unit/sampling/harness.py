"""A sampler with some requests in its slots, and the float64 distribution it should follow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.device.base import Device
from pagemill.device.select import select_device
from pagemill.ops.sampling import SamplingOps
from pagemill.params import SamplingParams
from pagemill.sampling.base import AcceptedTokens, LogitRows
from pagemill.sampling.sampler import Sampler
from pagemill.sampling.state import SamplingState
from pagemill.scheduler.batch import Admission

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NUM_SLOTS = 6


def admission(
    slot: int,
    params: SamplingParams,
    *,
    seed: int = 0,
    token_ids: Sequence[int] = (1,),
    prompt_len: int | None = None,
) -> Admission:
    text = np.array(token_ids, np.int32)
    length = len(text) if prompt_len is None else prompt_len
    return Admission(slot, f"r{slot}", params, seed, np.zeros(0, np.int32), 0, text, length)


class Slots:
    """A sampler and its state, filled by admissions."""

    def __init__(
        self, vocab_size: int, device: str = "cpu", ops: SamplingOps | None = None
    ) -> None:
        self.device: Device = select_device(device)
        where = self.device.torch_device
        self.state = SamplingState(NUM_SLOTS, vocab_size, where)
        self.sampler = Sampler(NUM_SLOTS, vocab_size, self.device, self.state, ops)

    def admit(self, *admitted: Admission) -> None:
        self.sampler.admit(admitted)
        fields = {k: self.tensor(v) for k, v in self.state.pack(admitted).items()}
        self.state.admit(self.tensor([a.slot for a in admitted]), fields)

    def rows(
        self,
        slots: Sequence[int],
        index: Sequence[int],
        drafts: Sequence[Sequence[int]] | None = None,
        num_preceding: Sequence[int] | None = None,
    ) -> LogitRows:
        return LogitRows(
            np.array(slots, np.int64),
            self.tensor(slots),
            self.tensor(index),
            None if drafts is None else self.tensor(drafts),
            None if num_preceding is None else self.tensor(num_preceding),
        )

    def draw(self, logits: Tensor, slots: Sequence[int], index: Sequence[int]) -> list[int]:
        rows = self.rows(slots, index)
        logits = logits.to(self.device.torch_device).clone()
        tokens: list[int] = self.sampler.sample(logits, rows).tolist()
        return tokens

    def process(self, logits: Tensor, rows: LogitRows) -> Tensor:
        logits = logits.to(self.device.torch_device).clone()
        self.sampler.process(logits, rows)
        return logits.cpu()

    def observe(self, slot: int, index: int, tokens: Sequence[int], num_tokens: int) -> None:
        accepted = AcceptedTokens(
            np.array([slot]),
            self.tensor([slot]),
            self.tensor([tokens]),
            self.tensor([num_tokens]),
            self.tensor([index]),
        )
        self.sampler.observe(accepted)

    def tensor(self, values: object) -> Tensor:
        return torch.as_tensor(np.array(values), device=self.device.torch_device)


def distribution(logits: NDArray[np.float64], params: SamplingParams) -> NDArray[np.float64]:
    """What a token's probabilities are by definition: temperature, min-p, top-k, then top-p."""
    scaled = logits / params.temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    p[p < params.min_p * p.max()] = 0
    if params.top_k:
        p[p < np.sort(p)[-min(params.top_k, len(p))]] = 0
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= params.top_p]] = 0
    return p / p.sum()

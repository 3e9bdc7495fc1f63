"""`bad_words`: sequences of tokens that must not be completed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pagemill.device.base import Device
from pagemill.sampling.base import SUPPRESSED, AcceptedTokens, LogitRows
from pagemill.sampling.state import SamplingState
from pagemill.sampling.token_history import TokenHistory
from pagemill.scheduler.batch import Admission

MAX_WORD_TOKENS = 1024  # the frontend limits words to fewer bytes than this
_NO_TOKEN = -1


class BadWords:
    """Implements `LogitsProcessor`: the last token of a word is suppressed after its others.

    Only generated text counts, as in vLLM: a word that the prompt begins is not noticed.
    """

    def __init__(self, num_slots: int, device: Device, state: SamplingState) -> None:
        self._num_slots = num_slots
        self._device = device
        self._state = state
        self._history: TokenHistory | None = None
        # Words end in the last column, so that a place's distance from the end is its column.
        self._words = np.full((num_slots, 1, 1), _NO_TOKEN, np.int64)
        self._device_words = torch.zeros(0, 0, 0, dtype=torch.int64)  # [slots, words, length]

    def add(self, admission: Admission) -> bool:
        words = admission.params.bad_words_token_ids
        if not words:
            return False
        assert max(map(len, words)) <= MAX_WORD_TOKENS
        if self._history is None:
            self._history = TokenHistory(self._num_slots, MAX_WORD_TOKENS, self._device)
        self._history.fill(
            admission.slot, self._device.from_numpy(admission.token_ids.astype(np.int64))
        )
        self._set(admission.slot, words)
        return True

    def remove(self, slot: int) -> None:
        """The words are overwritten by the next ones."""

    def apply(self, logits: Tensor, rows: LogitRows) -> None:
        words = self._device_words[rows.slots]  # [L, words, length]
        prefix, last = words[..., :-1], words[..., -1]
        recent = self._recent(rows, prefix.shape[2]).unsqueeze(1)  # [L, 1, length - 1]
        follows = ((prefix == recent) | (prefix == _NO_TOKEN)).all(dim=2) & (last != _NO_TOKEN)
        logits.scatter_add_(1, last.clamp(min=0), follows * SUPPRESSED)

    def observe(self, accepted: AcceptedTokens) -> None:
        assert self._history is not None
        self._history.append(accepted)

    def _recent(self, rows: LogitRows, length: int) -> Tensor:
        """The `length` generated tokens before each row's place, [L, length]; -2 for none."""
        assert self._history is not None
        back = torch.arange(length, 0, -1, device=rows.index.device)
        index = rows.index.unsqueeze(1) - back
        tokens = self._history.read(rows.slots, index)
        if rows.drafts is not None and rows.num_preceding is not None:
            num_preceding = rows.num_preceding.unsqueeze(1)
            draft = rows.drafts.gather(1, (num_preceding - back).clamp(0, rows.drafts.shape[1] - 1))
            tokens = torch.where(back <= num_preceding, draft, tokens)
        is_output = index >= self._state.prompt_len[rows.slots].unsqueeze(1)
        return torch.where(is_output, tokens, _NO_TOKEN - 1)

    def _set(self, slot: int, words: list[list[int]]) -> None:
        num_words = max(self._words.shape[1], len(words))
        length = max(self._words.shape[2], *map(len, words))
        grown = self._words.shape[1:] != (num_words, length)
        if grown:
            old = self._words
            self._words = np.full((self._num_slots, num_words, length), _NO_TOKEN, np.int64)
            self._words[:, : old.shape[1], length - old.shape[2] :] = old
        self._words[slot] = _NO_TOKEN
        for i, word in enumerate(words):
            self._words[slot, i, length - len(word) :] = word
        if grown or not self._device_words.numel():
            self._device_words = self._device.from_numpy(self._words)
        else:
            self._device_words[slot] = self._device.from_numpy(self._words[slot])

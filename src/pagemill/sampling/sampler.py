"""From logits to tokens, for all rows of a step at once and without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.device.base import Device
from pagemill.ops.sampling import Filters, SamplingOps
from pagemill.sampling.base import AcceptedTokens, LogitRows, LogitsProcessor
from pagemill.sampling.categorical import draw
from pagemill.sampling.filters import keep_top_p, min_p_limit, top_k_limit
from pagemill.sampling.processors.allowed_tokens import AllowedTokens
from pagemill.sampling.processors.bad_words import BadWords
from pagemill.sampling.processors.logit_bias import LogitBias
from pagemill.sampling.processors.min_tokens import MinTokens
from pagemill.sampling.processors.penalties import Penalties
from pagemill.sampling.processors.thinking_budget import ThinkingBudget
from pagemill.sampling.random import uniform
from pagemill.sampling.state import Column, SamplingState
from pagemill.scheduler.batch import Admission

Bool = NDArray[np.bool_]

# Large batches are worked on part by part: processors and drawing need about 40 bytes per logit
# for a while, and a CPU is several times faster while that stays within its caches.
_LOGITS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}


def rows_at_once(device_type: str, vocab_size: int, deterministic: bool) -> int:
    """How many rows of logits are worked on together.

    One by one where results must not depend on the others in a single bit: on a CPU, torch divides
    a sum among threads by the shape of the whole.
    """
    if deterministic and device_type == "cpu":
        return 1
    return max(1, _LOGITS_AT_ONCE[device_type] // vocab_size)


class Sampler:
    """Knows on the host which slots use which feature, so that only those are paid for.

    A row's token depends on its logits, its request's parameters and seed, and its place: not on
    the other rows.
    """

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        device: Device,
        state: SamplingState,
        ops: SamplingOps | None = None,
        *,
        deterministic: bool = False,
    ) -> None:
        self._device = device
        self._state = state
        self._ops = ops  # torch draws where there is none
        # In vLLM's order, as far as vLLM has them.
        self.processors: tuple[LogitsProcessor, ...] = (
            AllowedTokens(num_slots, vocab_size, device),
            BadWords(num_slots, device, state),
            LogitBias(num_slots, device),
            MinTokens(num_slots, device, state),
            Penalties(num_slots, vocab_size, device, state),
            ThinkingBudget(num_slots, device),  # last: nothing adds to what it suppresses
        )
        self._uses = np.zeros((len(self.processors), num_slots), np.bool_)
        self._is_random = np.zeros(num_slots, np.bool_)
        # Of random slots only: no filter leaves out the most likely token.
        self._has_min_p = np.zeros(num_slots, np.bool_)
        self._has_top_p = np.zeros(num_slots, np.bool_)
        self._top_k = np.zeros(num_slots, np.int64)  # 0: off
        self._vocab_size = vocab_size
        self._rows_at_once = rows_at_once(device.type, vocab_size, deterministic)

    def admit(self, admitted: Sequence[Admission]) -> None:
        """Set up the slots of new requests; their columns of the state are written separately."""
        for admission in admitted:
            slot, params = admission.slot, admission.params
            is_random = self._is_random[slot] = not params.greedy
            self._has_min_p[slot] = is_random and params.min_p > 0
            self._has_top_p[slot] = is_random and params.top_p < 1
            has_top_k = is_random and params.top_k < self._vocab_size
            self._top_k[slot] = params.top_k if has_top_k else 0
            for processor, uses in zip(self.processors, self._uses, strict=True):
                if uses[slot]:
                    processor.remove(slot)
                uses[slot] = processor.add(admission)

    def changes_logits(self, rows: LogitRows) -> bool:
        """Whether `process` would write to the logits of these rows."""
        return self.has_processors(rows.host_slots)

    def has_processors(self, slots: NDArray[np.int64]) -> bool:
        """Whether tokens of these slots depend on more than logits, filters and seed."""
        return bool(self._uses[:, slots].any())

    def is_greedy(self, slots: NDArray[np.int64]) -> bool:
        """Whether all of these slots take the most likely token."""
        return not self._is_random[slots].any()

    def filters(self, slots: NDArray[np.int64]) -> Filters:
        """What at least one of these slots uses."""
        return Filters(
            top_k=bool(self._top_k[slots].any()),
            top_p=bool(self._has_top_p[slots].any()),
            min_p=bool(self._has_min_p[slots].any()),
        )

    def process(self, logits: Tensor, rows: LogitRows) -> None:
        """Apply the processors that are in use to logits [L, vocab], in place."""
        if self.changes_logits(rows):
            for part in self._parts(len(logits)):
                self._process(logits[part], rows.part(part))

    def sample(self, logits: Tensor, rows: LogitRows) -> Tensor:
        """`process`, then `draw`; logits of any type, which are written if they are float32."""
        if not self.changes_logits(rows):
            return self.draw(logits, rows)
        parts = self._parts(len(logits))
        return torch.cat([self._sample(logits[part].float(), rows.part(part)) for part in parts])

    def draw(self, logits: Tensor, rows: LogitRows) -> Tensor:
        """A token for each row of logits [L, vocab] of any type, int64 [L]."""
        if self._ops is not None:
            return self._draw_by_kernels(self._ops, logits, rows)
        if self.is_greedy(rows.host_slots):
            return logits.argmax(dim=1)
        parts = self._parts(len(logits))
        return torch.cat([self._draw(logits[part].float(), rows.part(part)) for part in parts])

    def observe(self, accepted: AcceptedTokens) -> None:
        """Tell the processors in use what was sampled."""
        used = self._uses[:, accepted.host_slots].any(axis=1)
        for i in np.flatnonzero(used):
            self.processors[i].observe(accepted)

    def _parts(self, num_rows: int) -> list[slice]:
        starts = range(0, num_rows, self._rows_at_once)
        return [slice(start, start + self._rows_at_once) for start in starts]

    def _sample(self, logits: Tensor, rows: LogitRows) -> Tensor:
        self._process(logits, rows)
        return self.draw(logits, rows)

    def _draw_by_kernels(self, ops: SamplingOps, logits: Tensor, rows: LogitRows) -> Tensor:
        slots = rows.host_slots
        if self.is_greedy(slots):
            return ops.argmax(logits)
        looked_up = ops.sampling_rows(rows.slots, rows.index, self._state.by_slot)
        return ops.sample(logits, looked_up, self.filters(slots))

    def _process(self, logits: Tensor, rows: LogitRows) -> None:
        used = self._uses[:, rows.host_slots]  # [processors, L]
        for i in np.flatnonzero(used.any(axis=1)):
            processor = self.processors[i]
            if used[i].all():
                processor.apply(logits, rows)
                continue
            chosen, at = self._select(used[i])
            part = logits[at]
            processor.apply(part, rows.take(chosen, at))
            logits[at] = part

    def _draw(self, logits: Tensor, rows: LogitRows) -> Tensor:
        is_random = self._is_random[rows.host_slots]
        if is_random.all():
            return self._draw_random(logits, rows)
        tokens = logits.argmax(dim=1)
        if is_random.any():
            chosen, at = self._select(is_random)
            tokens[at] = self._draw_random(logits[at], rows.take(chosen, at))
        return tokens

    def _draw_random(self, logits: Tensor, rows: LogitRows) -> Tensor:
        columns = self._state.columns[rows.slots]
        scaled = logits / columns[:, Column.TEMPERATURE, None]
        # A row may hold nothing but -inf, which is no number to subtract from.
        nearest = scaled.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(scaled.dtype).min)
        distance = nearest - scaled
        weights = self._filter(distance, torch.exp(-distance), columns, rows.host_slots)
        return draw(weights, uniform(self._state.seeds[rows.slots], rows.index))

    def _filter(
        self, distance: Tensor, weights: Tensor, columns: Tensor, slots: NDArray[np.int64]
    ) -> Tensor:
        """The weights, 0 for tokens that min-p, top-k and top-p leave out."""
        top_k, has_top_p = self._top_k[slots], self._has_top_p[slots]
        limit = None  # [L, 1]
        if self._has_min_p[slots].any():
            limit = min_p_limit(columns[:, Column.MIN_P])
        if top_k.any():
            nearest_k = self._top_k_limit(distance, columns, top_k)
            limit = nearest_k if limit is None else torch.minimum(limit, nearest_k)
        if limit is not None:
            weights = torch.where(distance <= limit, weights, 0.0)
        if has_top_p.all():
            return keep_top_p(distance, weights, columns[:, Column.TOP_P])
        if has_top_p.any():
            _, at = self._select(has_top_p)
            weights[at] = keep_top_p(distance[at], weights[at], columns[at, Column.TOP_P])
        return weights

    def _top_k_limit(self, distance: Tensor, columns: Tensor, top_k: NDArray[np.int64]) -> Tensor:
        """The distance of each row's k-th nearest token, infinite for rows without top-k."""
        wanted = columns[:, Column.TOP_K].long()
        if top_k.all():
            return top_k_limit(distance, wanted, int(top_k.max()))
        _, at = self._select(top_k > 0)
        limit = torch.full_like(distance[:, :1], torch.inf)
        limit[at] = top_k_limit(distance[at], wanted[at], int(top_k.max()))
        return limit

    def _select(self, used: Bool) -> tuple[NDArray[np.int64], Tensor]:
        """The indices of the rows that are True, on the host and on the device."""
        chosen = np.flatnonzero(used)
        return chosen, self._device.from_numpy(chosen)

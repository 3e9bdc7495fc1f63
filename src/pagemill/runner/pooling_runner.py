"""Runs batches of requests that want vectors: inputs, forward pass, pooling, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.attention.base import AttentionBackend, LayerCache, PackedAttention
from pagemill.config.engine import EngineConfig
from pagemill.config.pooling import PoolingConfig
from pagemill.device.base import Device, Event, Task
from pagemill.models.base import PooledModel
from pagemill.params import PoolingParams
from pagemill.pooling.finish import finish
from pagemill.pooling.methods import METHODS
from pagemill.pooling.rows import SortedBatch, by_length
from pagemill.runner.inputs import BatchLayout, build, pack
from pagemill.runner.results import download
from pagemill.runner.slots import SlotState
from pagemill.runner.staging import StagingRing
from pagemill.scheduler.batch import Admission, Batch
from pagemill.scheduler.result import StepResult

_STEPS_IN_FLIGHT = 1
_FIELDS_PER_TOKEN = 5
_DEFAULT = PoolingParams()


@dataclass(frozen=True, slots=True)
class PooledRow:
    """One row of a step that has something to tell, and its vectors in host memory."""

    row: int  # of the batch as it was scheduled
    params: PoolingParams
    vectors: Tensor  # [width] or [num_query, width] float32


@dataclass(frozen=True, slots=True)
class PooledStep:
    """Vectors on their way to the host; they are there when `event` has come."""

    samples: NDArray[np.bool_]  # [n]
    rows: list[PooledRow]
    event: Event


class PendingPooling:
    """Implements `PendingResult`. A request that pools "samples" once, a token of no meaning."""

    def __init__(self, step: Task[PooledStep], config: PoolingConfig) -> None:
        self._step = step
        self._config = config

    def wait(self) -> StepResult:
        """Raises what the forward pass raised."""
        step = self._step.result()
        step.event.synchronize()
        return StepResult(
            token_ids=np.zeros((len(step.samples), 1), np.int32),
            num_tokens=step.samples.astype(np.int32),
            pooled={
                own.row: finish(own.vectors.numpy(), own.params, self._config) for own in step.rows
            },
        )


class PoolingRunner:
    """Owns the slots and, for a decoder, the KV cache of one model on one device.

    `forward` and `sample` are called in turn, as `ModelRunner`'s are. Encoders get `packed`.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: PooledModel,
        device: Device,
        attention: AttentionBackend,
        packed: PackedAttention | None,
        kv_cache: list[LayerCache],
    ) -> None:
        assert config.pooling is not None
        self._config = config.pooling
        self._model = model
        self._device = device
        self._attention = attention
        self._packed = packed
        self._kv_cache = kv_cache
        self._block_size = config.block_size
        self._pool = METHODS[config.pooling.method]
        max_blocks = -(-config.max_model_len // config.block_size)
        vocab, num_slots = model.vocab_size, config.max_num_seqs
        self._slots = SlotState(num_slots, max_blocks, 0, vocab, device.torch_device)
        self._params = [_DEFAULT] * num_slots
        capacity = 8 * _FIELDS_PER_TOKEN * (config.max_num_batched_tokens + num_slots)
        self._staging = StagingRing(device, _STEPS_IN_FLIGHT + 1, capacity)
        self._step: Task[PooledStep] | None = None

    def forward(self, batch: Batch) -> None:
        """Submit the forward pass and the pooling."""
        self._step = self._device.submit(lambda: self._forward(batch))

    def sample(self, batch: Batch, bitmask: NDArray[np.int32] | None = None) -> PendingPooling:
        """What the batch that was given to `forward` last will have yielded."""
        assert self._step is not None and bitmask is None
        return PendingPooling(self._step, self._config)

    def capture_another(self) -> bool:
        """There are no graphs."""
        return False

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> PooledStep:
        self._admit(batch.admitted)
        ordered = by_length(batch)
        hidden, fields = self._hidden(ordered.batch)
        rows = [*self._pooled(ordered, hidden), *self._by_token(ordered, hidden)]
        self._slots.length[fields["slots"]] += fields["num_query"]
        return PooledStep(batch.samples, rows, self._device.record_event())

    def _admit(self, admitted: Sequence[Admission]) -> None:
        for admission in admitted:
            self._params[admission.slot] = admission.pooling or _DEFAULT

    def _hidden(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        layout = BatchLayout.of(batch)
        host = self._slots.pack(batch) | pack(batch, layout)
        second = np.array([self._params[slot].second_text for slot in layout.slots], np.int64)
        if second.any():
            host["second_text"] = np.repeat(second, batch.num_query)
        fields = self._staging.upload(host)
        self._slots.update(fields)
        forward = build(batch, layout, fields, self._slots, self._block_size)
        if "second_text" in fields:
            at = fields["second_text"]
            forward.token_types = ((at > 0) & (forward.positions >= at)).long()
        forward.kv_cache, forward.packed = self._kv_cache, self._packed
        forward.attention = self._attention
        forward.plan = (self._packed or self._attention).plan(forward)
        return self._model.forward(forward), fields

    def _pooled(self, ordered: SortedBatch, hidden: Tensor) -> list[PooledRow]:
        """One vector for each row that is complete."""
        batch = ordered.batch
        params = [self._params[slot] for slot in batch.slots]
        wanted = [i for i, own in enumerate(params) if batch.samples[i] and not own.by_token]
        if not wanted:
            return []
        ends = np.cumsum(batch.num_query, dtype=np.int64)
        bounds = np.stack((ends - batch.num_query, ends))[:, wanted]
        num_tokens = int(batch.num_query[wanted].sum())
        starts, behind = self._device.from_numpy(bounds)
        vectors = self._model.classify(self._pool(hidden, starts, behind, num_tokens)).float()
        on_host = download(vectors, self._device)
        return [
            PooledRow(int(ordered.order[i]), params[i], own)
            for i, own in zip(wanted, on_host, strict=True)
        ]

    def _by_token(self, ordered: SortedBatch, hidden: Tensor) -> list[PooledRow]:
        """All vectors of the rows that want them."""
        batch, rows = ordered.batch, []
        ends = np.cumsum(batch.num_query).tolist()
        for i, slot in enumerate(batch.slots):
            params = self._params[slot]
            if params.by_token:
                own = hidden[ends[i] - int(batch.num_query[i]) : ends[i]].float()
                rows.append(PooledRow(int(ordered.order[i]), params, download(own, self._device)))
        return rows

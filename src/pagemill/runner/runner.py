"""Runs batches: inputs, forward pass, sampling, results. The same code on every device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagemill.attention.base import AttentionBackend, LayerCache
from pagemill.config.engine import EngineConfig
from pagemill.device.base import CapturesGraphs, Device, Task
from pagemill.models.base import Model
from pagemill.ops.decode import DecodeOps
from pagemill.ops.packed import PackedOps
from pagemill.ops.sampling import SamplingOps
from pagemill.runner.advance import advance
from pagemill.runner.decode_step import (
    DecodeModel,
    DecodeStep,
    DecodeSteps,
    EagerSteps,
    Sampling,
)
from pagemill.runner.graphs import DecodeGraphs
from pagemill.runner.inputs import (
    BatchLayout,
    build,
    decodes_only,
    logit_rows,
    more_tables,
    pack,
    pack_rows,
    plan_layers,
)
from pagemill.runner.packed_graphs import PackedGraphs
from pagemill.runner.prompt_texts import PromptSpan, PromptTexts
from pagemill.runner.results import (
    PendingStep,
    PlacedLogprobs,
    StepOutput,
    download,
    download_logprobs,
)
from pagemill.runner.slots import SlotState
from pagemill.runner.staging import StagingRing
from pagemill.sampling.base import AcceptedTokens, LogitRows
from pagemill.sampling.bitmask import apply_bitmask
from pagemill.sampling.logprobs import TopLogprobs, prompt_logprobs, top_logprobs
from pagemill.sampling.sampler import Sampler, rows_at_once
from pagemill.sampling.token_history import TokenHistory
from pagemill.scheduler.batch import Admission, Batch
from pagemill.speculative.base import Speculator

_STEPS_IN_FLIGHT = 1
_FIELDS_PER_TOKEN = 4


@dataclass(slots=True)
class _ForwardStep:
    """What sampling needs of the forward pass before it."""

    layout: BatchLayout
    fields: dict[str, Tensor]
    rows: LogitRows
    logits: Tensor  # [L, vocab]
    spans: list[PromptSpan]
    hidden: Tensor  # [num_tokens, hidden]; of each row's last token where a graph was replayed


@dataclass(slots=True)
class _SampledStep:
    """A step whose graph has sampled already."""

    tokens: Tensor  # [n] int32


@dataclass(frozen=True, slots=True)
class _Decoding:
    """How the rows of the last decode step sample, as long as nobody is admitted."""

    slots: bytes
    sampling: Sampling


class ModelRunner:
    """Owns the slots, the KV cache and the sampler of one model on one device.

    `forward` and `sample` are called in turn, once each per batch. They return when the work is
    submitted; a batch must not be changed afterwards.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: Model,
        device: Device,
        attention: AttentionBackend,
        kv_cache: list[LayerCache],
        speculator: Speculator | None = None,
        decode_ops: DecodeOps | None = None,
        layer_tables: tuple[int, ...] = (),
        sampling_ops: SamplingOps | None = None,
    ) -> None:
        self._model = model
        self._device = device
        self._attention = attention
        self._kv_cache = kv_cache
        self._layer_tables = layer_tables  # of each layer; all the first when empty
        self._block_size = config.block_size
        self._speculator = speculator
        max_drafts = speculator.max_drafts if speculator else 0
        max_blocks = -(-(config.max_model_len + max_drafts) // config.block_size)
        self._slots = SlotState(
            config.max_num_seqs,
            max_blocks,
            max_drafts,
            model.vocab_size,
            device.torch_device,
            num_tables=max(layer_tables, default=0) + 1,
        )
        self._sampler = Sampler(
            config.max_num_seqs,
            model.vocab_size,
            device,
            self._slots.sampling,
            sampling_ops,
            deterministic=config.deterministic,
        )
        self._rows_at_once = rows_at_once(device.type, model.vocab_size, config.deterministic)
        self._history: TokenHistory | None = None
        if speculator is not None:
            width = config.max_model_len + max_drafts
            self._history = TokenHistory(config.max_num_seqs, width, device)
        self._num_logprobs = np.full(config.max_num_seqs, -1, np.int64)  # -1: none
        self._prompts = PromptTexts(model.vocab_size)
        capacity = 8 * _FIELDS_PER_TOKEN * (config.max_num_batched_tokens + config.max_num_seqs)
        self._staging = StagingRing(device, _STEPS_IN_FLIGHT + 1, capacity)
        self._decode: DecodeStep | None = None
        self._decode_steps: DecodeSteps | None = None
        self._decoding = _Decoding(b"", Sampling.NONE)
        self._graphs: DecodeGraphs | None = None
        self._packed: PackedGraphs | None = None
        if decode_ops is not None:
            decode = DecodeModel(
                model, attention, kv_cache, decode_ops, config.block_size, layer_tables
            )
            self._prepare_decoding(decode, config)
        self._forward_task: Task[None] | None = None
        self._step: _ForwardStep | _SampledStep | None = None

    def _prepare_decoding(self, model: DecodeModel, config: EngineConfig) -> None:
        device, rows = self._device, config.max_num_seqs
        captures = isinstance(device, CapturesGraphs)
        if not (config.cuda_graphs if captures else self._speculator is None):
            return
        self._decode = DecodeStep(model, self._slots, rows, reuse=not captures)
        if not isinstance(device, CapturesGraphs):
            self._decode_steps = EagerSteps(self._decode)
            return
        self._decode_steps = self._graphs = DecodeGraphs(self._decode, device, rows)
        if isinstance(model.ops, PackedOps) and self._speculator is None:
            tokens = config.max_num_batched_tokens
            self._packed = PackedGraphs(model, model.ops, device, self._slots, rows, tokens)

    def forward(self, batch: Batch) -> None:
        """Submit the forward pass."""
        self._forward_task = self._device.submit(lambda: self._forward(batch))

    def sample(self, batch: Batch, bitmask: NDArray[np.int32] | None = None) -> PendingStep:
        """Submit the sampling of the batch that was given to `forward` last.

        `bitmask` [len(grammar_rows), words] restricts the logits of the batch's grammar rows.
        """
        assert self._forward_task is not None
        sampling = self._device.submit(lambda: self._sample(batch, bitmask))
        return PendingStep(self._forward_task, sampling)

    @torch.inference_mode()
    def capture_graphs(self) -> int:
        """Capture the first graphs, where the device has any; how many there are."""
        if self._graphs is None:
            return 0
        num_decode = self._graphs.capture_first()
        num_packed = self._packed.capture_first() if self._packed is not None else 0
        return num_decode + num_packed

    @torch.inference_mode()
    def capture_another(self) -> bool:
        """Capture a graph that is still missing, while no step is in flight; whether there was one.

        With a speculator steps have drafts and use none. Lack of memory is no error here.
        """
        if self._graphs is None or self._speculator is not None:
            return False
        packed = self._packed
        if packed is not None and packed.capture_missed():
            return True
        if self._graphs.capture_another():
            return True
        return packed is not None and packed.capture_another()

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> None:
        self._step = None
        self._admit(batch.admitted)
        if self._decode_steps is not None and decodes_only(batch):
            self._step = self._replay(self._decode_steps, batch)
            if self._step is not None:
                return
        layout = BatchLayout.of(batch)
        if self._packed is not None and not layout.uniform and batch.prompt_logprobs is None:
            self._step = self._replay_packed(self._packed, batch, layout)
            if self._step is not None:
                return
        fields = self._staging.upload(self._slots.pack(batch) | pack(batch, layout))
        self._slots.update(fields)
        forward = build(batch, layout, fields, self._slots, self._block_size)
        forward.kv_cache = self._kv_cache
        forward.attention = self._attention
        more = more_tables(forward, fields, self._slots, self._block_size)
        plan_layers(forward, more, self._layer_tables)
        hidden = self._model.forward(forward)
        self._step = _ForwardStep(
            layout=layout,
            fields=fields,
            rows=logit_rows(layout, fields, forward, self._slots),
            logits=self._project(hidden if layout.uniform else hidden[forward.logits_rows], layout),
            spans=self._prompts.spans(batch, layout),
            hidden=hidden,
        )

    def _replay(self, steps: DecodeSteps, batch: Batch) -> _ForwardStep | _SampledStep | None:
        """A decode step in one launch, with its sampling if that is simple."""
        decode, num_rows, sampling = self._decode, batch.num_rows, self._decode_sampling(batch)
        graph = steps.find(num_rows, sampling)
        if decode is None or graph is None:
            return None
        fields = self._slots.pack(batch) | decode.pack(batch.slots)
        if fields:
            on_device = self._staging.upload(fields)
            self._slots.update(on_device)
            decode.update(on_device)
        graph.replay()
        if sampling is not Sampling.NONE:
            return _SampledStep(decode.tokens(num_rows))
        hidden, positions = decode.hidden(num_rows)
        layout, slots = BatchLayout.of(batch), decode.slots(num_rows)
        return _ForwardStep(
            layout=layout,
            fields={"slots": slots},
            rows=LogitRows(layout.slots, slots, positions + 1),
            logits=self._model.compute_logits(hidden),
            spans=[],
            hidden=hidden,
        )

    def _replay_packed(
        self, packed: PackedGraphs, batch: Batch, layout: BatchLayout
    ) -> _ForwardStep | _SampledStep | None:
        """A step with prompts in one launch, where there is a graph for it."""
        sampling = self._graph_sampling(batch, layout.slots)
        graph = packed.find(batch.num_tokens, batch.num_rows, sampling)
        if graph is None:
            return None
        fields = self._slots.pack(batch) | packed.pack(batch, layout)
        if sampling is Sampling.NONE:
            fields |= pack_rows(batch, layout)
        on_device = self._staging.upload(fields)
        self._slots.update(on_device)
        packed.update(on_device)
        graph.replay()
        if sampling is not Sampling.NONE:
            return _SampledStep(packed.tokens(batch.num_rows))
        hidden, index = packed.hidden(batch.num_rows)
        slots = on_device["slots"]
        if not layout.one_each:
            sampled = on_device["logit_row"]
            hidden, index, slots = hidden[sampled], index[sampled], slots[sampled]
        return _ForwardStep(
            layout=layout,
            fields=on_device,
            rows=LogitRows(layout.logit_slots, slots, index),
            logits=self._project(hidden, layout),
            spans=[],
            hidden=hidden,
        )

    def _decode_sampling(self, batch: Batch) -> Sampling:
        """`_graph_sampling`, found once for steps with the same rows."""
        if batch.needs_grammar:
            return Sampling.NONE
        slots = batch.slots.tobytes()
        if slots != self._decoding.slots:
            sampling = self._graph_sampling(batch, batch.slots.astype(np.int64))
            self._decoding = _Decoding(slots, sampling)
        return self._decoding.sampling

    def _graph_sampling(self, batch: Batch, slots: NDArray[np.int64]) -> Sampling:
        wants_logprobs = (self._num_logprobs[slots] >= 0).any()
        if batch.needs_grammar or wants_logprobs or self._sampler.has_processors(slots):
            return Sampling.NONE
        if self._sampler.is_greedy(slots):
            return Sampling.GREEDY
        return Sampling.FILTERED if self._sampler.filters(slots) else Sampling.TEMPERATURE

    @torch.inference_mode()
    def _sample(self, batch: Batch, bitmask: NDArray[np.int32] | None) -> StepOutput:
        step = self._step
        assert step is not None, "the forward pass of this batch has failed"
        self._step = None
        if isinstance(step, _SampledStep):
            return self._output(batch, step.tokens)
        wanted = np.flatnonzero(self._num_logprobs[step.rows.host_slots] >= 0)
        logits = step.logits
        if len(wanted) and (bitmask is not None or self._sampler.changes_logits(step.rows)):
            logits = logits.clone()  # log-probabilities are of the model's own logits
        if bitmask is not None:
            self._restrict(logits, step.layout, batch, bitmask)
        tokens = self._sampler.sample(logits, step.rows)
        accepted = advance(step.layout, step.fields, tokens, self._slots)
        self._sampler.observe(accepted)
        self._speculate(accepted, batch.max_seq_len)
        return StepOutput(
            tokens=download(accepted.tokens.int(), self._device),
            num_tokens=self._num_tokens(batch, step.layout, accepted),
            row_logprobs=self._row_logprobs(step, tokens, wanted),
            prompt_logprobs=[(span, self._score(step.hidden, span)) for span in step.spans],
            event=self._device.record_event(),
        )

    def _output(self, batch: Batch, tokens: Tensor) -> StepOutput:
        """The results of a step without drafts and log-probabilities, `tokens` [n]."""
        return StepOutput(
            tokens=download(tokens.unsqueeze(1), self._device),
            num_tokens=batch.samples.astype(np.int32),
            row_logprobs=None,
            prompt_logprobs=[],
            event=self._device.record_event(),
        )

    def _admit(self, admitted: Sequence[Admission]) -> None:
        if not admitted:
            return
        self._decoding = _Decoding(b"", Sampling.NONE)
        self._sampler.admit(admitted)
        self._prompts.admit(admitted)
        for admission in admitted:
            asked = admission.params.logprobs
            top = -1 if asked is None else asked if asked >= 0 else self._model.vocab_size
            self._num_logprobs[admission.slot] = top
            if self._history is not None:
                token_ids = self._device.from_numpy(admission.token_ids.astype(np.int32))
                self._history.fill(admission.slot, token_ids)

    def _project(self, hidden: Tensor, layout: BatchLayout) -> Tensor:
        """Logits [L, vocab] of the hidden states [L, hidden] of the batch's rows of logits."""
        if not len(layout.logit_row):  # chunks of prompts only
            return torch.empty(0, self._model.vocab_size, device=hidden.device)
        return self._model.compute_logits(hidden)

    def _restrict(
        self, logits: Tensor, layout: BatchLayout, batch: Batch, bitmask: NDArray[np.int32]
    ) -> None:
        assert batch.grammar_rows is not None
        # Rows with a grammar have no drafts, so each has one row of logits.
        at = self._device.from_numpy(np.searchsorted(layout.logit_row, batch.grammar_rows))
        part = logits[at]
        apply_bitmask(part, self._device.from_numpy(bitmask))
        logits[at] = part

    def _speculate(self, accepted: AcceptedTokens, max_seq_len: int) -> None:
        """Put new drafts behind the last token of every row."""
        if self._speculator is None or self._history is None:
            return
        self._history.append(accepted)
        lengths = accepted.index + accepted.num_tokens
        texts = self._history.tokens[:, : max_seq_len + 1][accepted.slots]
        drafts = self._speculator.propose(texts, lengths)
        self._slots.next_input[accepted.slots, 1:] = drafts

    def _num_tokens(
        self, batch: Batch, layout: BatchLayout, accepted: AcceptedTokens
    ) -> Tensor | NDArray[np.int32]:
        if not layout.max_drafts:
            return batch.samples.astype(np.int32)
        return download(accepted.num_tokens.int(), self._device)

    def _row_logprobs(
        self, step: _ForwardStep, tokens: Tensor, wanted: NDArray[np.int64]
    ) -> PlacedLogprobs | None:
        if not len(wanted):
            return None
        top = int(self._num_logprobs[step.rows.host_slots[wanted]].max())
        at = self._device.from_numpy(wanted)
        values = top_logprobs(step.logits[at], tokens[at], top, self._rows_at_once)
        return PlacedLogprobs(
            row=step.layout.logit_row[wanted],
            offset=step.layout.logit_offset[wanted],
            values=download_logprobs(values, self._device),
        )

    def _score(self, hidden: Tensor, span: PromptSpan) -> TopLogprobs:
        targets = self._device.from_numpy(span.targets.astype(np.int64))
        rows = hidden[span.first_token : span.first_token + len(targets)]
        values = prompt_logprobs(
            rows, targets, span.top, self._model.compute_logits, self._rows_at_once
        )
        return download_logprobs(values, self._device)

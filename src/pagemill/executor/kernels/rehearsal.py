"""The steps of an engine, gone through on tensors without memory: what they launch, without it.

The code of a start and of serving itself runs here, so there is no list of kernels to keep. What
the kernels would compute is missing: nothing on the host may depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import numpy as np
import torch

from pagemill.checkpoint.open import open_checkpoint
from pagemill.config.engine import EngineConfig
from pagemill.config.facts import DeviceFacts
from pagemill.device.shapes import ShapeDevice
from pagemill.executor.base import Runner
from pagemill.executor.cache import CachePlan
from pagemill.executor.parts import (
    build_context,
    build_runner,
    cache_type,
    choose_attention,
    find_decode_ops,
)
from pagemill.executor.pooling import select_builder
from pagemill.ops.decode import DecodeOps
from pagemill.params import SamplingParams
from pagemill.runner.memory import cache_budget, dummy_batch, largest_batch
from pagemill.runner.runner import ModelRunner
from pagemill.scheduler.batch import Batch

_GREEDY = SamplingParams(temperature=0.0)
_SAMPLING = (
    _GREEDY,
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.0, top_p=0.9),
    SamplingParams(temperature=1.0, top_k=50),
    SamplingParams(temperature=1.0, top_k=50, top_p=0.9),
    SamplingParams(temperature=1.0, min_p=0.1),
)
# Launches change with few tokens, one by one, and with many in powers of two.
_PROMPTS = (*range(1, 18), 33, 65, 129, 257, 513, 1025)
_ROWS = (1, 2, 16, 17, 64)


class Rehearsal:
    """One engine under one configuration, on the device that `facts` describe."""

    def __init__(self, config: EngineConfig, facts: DeviceFacts) -> None:
        device = self._device = ShapeDevice(facts)
        model_config = open_checkpoint(config.model).model_config()
        model_config = replace(model_config, max_position=config.max_model_len)
        self._attention = choose_attention(config, device)
        self._context = build_context(config, model_config, device)
        self._model = select_builder(config)(model_config, self._context)
        self._model.finish_loading()
        assert isinstance(self._model, torch.nn.Module)
        self._model.eval()
        self._plan = CachePlan(config, self._model, cache_type(config, device, self._context))
        self._config = config
        weights = (*self._model.parameters(), *self._model.buffers())
        # What is left beside the weights is nearly what the engine will find: the cache's size
        # matters only where offsets into it need 64 bits.
        fit = self._plan.fit(cache_budget(config, device, sum(w.nbytes for w in weights)))
        fitted = msgspec.structs.replace(config, max_model_len=fit.max_model_len)
        decode_ops = find_decode_ops(config, self._context.ops, self._attention)
        self._serving = self._runner(fitted, fit.num_blocks, decode_ops)
        # Steps for which there is no graph yet.
        self._eager = self._runner(fitted, fit.num_blocks)

    def start(self) -> Iterator[None]:
        """What an engine computes before its first token, and that token for common prompts."""
        # Memory is measured with a cache of one block, for which offsets are short.
        self._run(self._runner(self._config, 1), largest_batch(self._config))
        yield
        runner = self._serving
        if isinstance(runner, ModelRunner):
            runner.capture_graphs()
        yield
        for num_tokens in (4, 40):
            self._prompts([num_tokens], _GREEDY)
            yield
        for params in _SAMPLING[:3]:
            self._prompts([40], params)
            yield

    def serving(self) -> Iterator[None]:
        """What comes up later, the likeliest first."""
        self._run(self._eager, largest_batch(self._config))
        yield
        runner = self._serving
        if isinstance(runner, ModelRunner):
            while runner.capture_another():
                yield
        for rows in _ROWS:
            for params in _SAMPLING:
                self._decode(rows, params)
                yield
                self._prompts([40] * rows, params)
                yield
        for num_tokens in _PROMPTS:
            for beside in (0, 1, 16):
                self._prompts([num_tokens] + [1] * beside, _GREEDY)
                yield

    def _runner(
        self, config: EngineConfig, num_blocks: int, decode_ops: DecodeOps | None = None
    ) -> Runner:
        ops, device, attention = self._context.ops, self._device, self._attention
        return build_runner(
            config, self._model, device, attention, self._plan, num_blocks, ops, decode_ops
        )

    def _prompts(self, num_query: list[int], params: SamplingParams) -> None:
        config = self._config
        fits = sum(num_query) <= config.max_num_batched_tokens
        if fits and max(num_query) < config.max_model_len and len(num_query) <= config.max_num_seqs:
            for runner in (self._serving, self._eager):
                self._run(runner, dummy_batch(np.array(num_query, np.int32), params))

    def _decode(self, num_rows: int, params: SamplingParams) -> None:
        config = self._config
        drafts = config.num_speculative_tokens if config.speculative != "none" else 0
        fits = num_rows * (1 + drafts) <= config.max_num_batched_tokens
        if fits and num_rows <= config.max_num_seqs and config.pooling is None:
            num_query = np.full(num_rows, 1 + drafts, np.int32)
            batch = dummy_batch(num_query, params, resident=True, num_drafts=drafts)
            self._run(self._serving, batch)

    def _run(self, runner: Runner, batch: Batch) -> None:
        runner.forward(batch)
        runner.sample(batch)

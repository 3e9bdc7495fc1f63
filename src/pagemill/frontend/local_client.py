"""The engine in this very process, for offline work: everything in, everything out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pagemill.engine.messages import AddRequest, EngineInfo, LogprobsChunk, RequestDelta
from pagemill.errors import PageMillError
from pagemill.frontend.mailbox import merge_update
from pagemill.frontend.output_processor import OutputProcessor
from pagemill.frontend.outputs import ChoiceUpdate, PooledOutput, Prompt, refusal
from pagemill.frontend.pooling import PoolingCollector, pooling_request, resolve_pooling_params
from pagemill.frontend.submission import PromptHasher, engine_requests
from pagemill.frontend.tokenizer import Tokenizer
from pagemill.frontend.validate import RequestValidator
from pagemill.params import PoolingParams, SamplingParams


class LocalEngine(Protocol):
    """What offline work needs of an engine."""

    @property
    def info(self) -> EngineInfo: ...

    def add_request(self, message: AddRequest) -> None: ...

    def abort(self, request_ids: Sequence[str]) -> None: ...

    def has_work(self) -> bool: ...

    def step(self) -> list[RequestDelta]: ...


class LocalClient:
    """Runs batches of prompts to their end. Not for several threads at once."""

    def __init__(
        self,
        engine: LocalEngine,
        validator: RequestValidator,
        hasher: PromptHasher,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._engine = engine
        self._validator = validator
        self._hasher = hasher
        self._tokenizer = tokenizer
        self._run_ids = itertools.count()

    def run(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        on_finished: Callable[[int, int], None],
    ) -> list[list[ChoiceUpdate]]:
        """The complete choices of each prompt, in order.

        `on_finished` gets the numbers of choices and of tokens that have been completed since it
        was last called. Raises RequestError before anything runs, PageMillError when the engine
        fails a request; then, and at Ctrl-C, the rest is aborted.
        """
        _check_grammars(params)
        max_model_len = self._engine.info.max_model_len
        resolved = [
            self._validator.resolve(prompt, own, max_model_len)
            for prompt, own in zip(prompts, params, strict=True)
        ]
        run_id = next(self._run_ids)
        collectors: list[list[Collector]] = []
        waiting: dict[str, FinishingCollector] = {}
        try:
            for number, (prompt, own) in enumerate(zip(prompts, resolved, strict=True)):
                added = self._add(f"{run_id}-{number}", prompt, own)
                waiting |= added
                collectors.append(list(added.values()))
            self._drive(waiting, on_finished)
        finally:
            self._abort(list(waiting))
        return [[collector.result() for collector in own] for own in collectors]

    def pool(
        self,
        prompts: Sequence[Prompt],
        params: PoolingParams,
        on_finished: Callable[[int, int], None],
    ) -> list[PooledOutput]:
        """The vectors of each prompt, in order; otherwise as `run`."""
        info, run_id = self._engine.info, next(self._run_ids)
        for prompt in prompts:
            self._validator.check_prompt(prompt)
        resolved = [resolve_pooling_params(prompt, params, info) for prompt in prompts]
        collectors: list[PoolingCollector] = []
        waiting: dict[str, FinishingCollector] = {}
        try:
            for number, (prompt, own) in enumerate(zip(prompts, resolved, strict=True)):
                hashes = self._hasher.hash_now(prompt, info.block_size)
                request = pooling_request(f"{run_id}-{number}", 0, prompt, hashes, own)
                collector = PoolingCollector(own, len(prompt.token_ids))
                collectors.append(collector)
                waiting[request.request_id] = collector
                self._engine.add_request(request)
            self._drive(waiting, on_finished)
        finally:
            self._abort(list(waiting))
        return [collector.result() for collector in collectors]

    def _add(self, request_id: str, prompt: Prompt, params: SamplingParams) -> dict[str, Collector]:
        hashes = self._hasher.hash_now(prompt, self._engine.info.block_size)
        added: dict[str, Collector] = {}
        for index, request in enumerate(engine_requests(request_id, 0, prompt, hashes, params)):
            request.arrival_time = time.monotonic()
            processor = OutputProcessor(index, params, self._tokenizer)
            kind = StreamedCollector if params.stop_strings else DeferredCollector
            added[request.request_id] = kind(processor)
            self._engine.add_request(request)
        return added

    def _drive(
        self, waiting: dict[str, FinishingCollector], on_finished: Callable[[int, int], None]
    ) -> None:
        """Step until nothing is waited for; finished requests leave `waiting`."""
        while waiting:
            assert self._engine.has_work(), "the engine has dropped a request"
            num_finished = num_tokens = 0
            for delta in self._engine.step():
                collector = waiting.get(delta.request_id)
                if collector is None or not collector.add(delta):
                    continue
                del waiting[delta.request_id]
                num_finished += 1
                num_tokens += collector.num_tokens
                if delta.finish_reason == "error":
                    raise refusal(delta.error, delta.error_param) or PageMillError(
                        delta.error or "the engine could not finish a request"
                    )
                if delta.finish_reason is None:
                    self._engine.abort([delta.request_id])
            if num_finished:
                on_finished(num_finished, num_tokens)

    def _abort(self, request_ids: list[str]) -> None:
        """Leave the engine empty, for the next run."""
        if request_ids:
            self._engine.abort(request_ids)
        while self._engine.has_work():
            self._engine.step()


class FinishingCollector(Protocol):
    """Gathers what one engine request produces."""

    num_tokens: int

    def add(self, delta: RequestDelta) -> bool:
        """Take a delta; True when all is there."""
        ...


class Collector(FinishingCollector, Protocol):
    """That of a choice of text."""

    def __init__(self, processor: OutputProcessor) -> None: ...

    def result(self) -> ChoiceUpdate: ...


class DeferredCollector:
    """Keeps the bytes and turns them into tokens and text once, at the end."""

    __slots__ = ("_chunks", "_logprobs", "_processor", "_prompt_logprobs", "_total", "num_tokens")

    def __init__(self, processor: OutputProcessor) -> None:
        self.num_tokens = 0
        self._processor = processor
        self._chunks: list[bytes] = []
        self._logprobs: list[LogprobsChunk] = []
        self._prompt_logprobs: list[LogprobsChunk] = []
        self._total = RequestDelta("")

    def add(self, delta: RequestDelta) -> bool:
        self._chunks.append(delta.token_ids)
        if delta.logprobs is not None:
            self._logprobs.append(delta.logprobs)
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs.append(delta.prompt_logprobs)
        if delta.num_cached_tokens is not None:
            self._total.num_cached_tokens = delta.num_cached_tokens
        if delta.finish_reason is None:
            return False
        self._total.finish_reason = delta.finish_reason
        self._total.stop_reason = delta.stop_reason
        self._total.error = delta.error
        self._total.token_ids = b"".join(self._chunks)
        self.num_tokens = len(self._total.token_ids) // 4
        return True

    def result(self) -> ChoiceUpdate:
        self._total.logprobs = _joined(self._logprobs)
        self._total.prompt_logprobs = _joined(self._prompt_logprobs)
        update = self._processor.process(self._total)
        assert update is not None, "a result was asked for before the end"
        return update


class StreamedCollector:
    """Reads the text as it comes, because a stop string may end it."""

    __slots__ = ("_processor", "_update", "num_tokens")

    def __init__(self, processor: OutputProcessor) -> None:
        self.num_tokens = 0
        self._processor = processor
        self._update = ChoiceUpdate(processor.index)

    def add(self, delta: RequestDelta) -> bool:
        update = self._processor.process(delta)
        if update is not None:
            merge_update(self._update, update)
            self.num_tokens = len(self._update.token_ids)
        return self._processor.finished

    def result(self) -> ChoiceUpdate:
        return self._update


def _check_grammars(params: Sequence[SamplingParams]) -> None:
    """Refuse grammars that cannot be enforced. Raises GrammarError."""
    for own in params:
        if own.structured_outputs is not None:
            from pagemill.grammar.source import check_grammar

            check_grammar(own.structured_outputs)


def _joined(chunks: list[LogprobsChunk]) -> LogprobsChunk | None:
    """Chunks of one request all have the same width."""
    if not chunks:
        return None
    return LogprobsChunk(
        num_positions=sum(chunk.num_positions for chunk in chunks),
        width=chunks[0].width,
        token_ids=b"".join(chunk.token_ids for chunk in chunks),
        logprobs=b"".join(chunk.logprobs for chunk in chunks),
        ranks=b"".join(chunk.ranks for chunk in chunks),
    )

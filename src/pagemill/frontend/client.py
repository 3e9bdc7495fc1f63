"""The engine behind a process boundary, as the API sees it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pagemill.config.engine import EngineConfig
from pagemill.engine.channel import ClientChannel, EngineAddress
from pagemill.engine.messages import (
    AbortClient,
    AbortRequests,
    AddRequest,
    Control,
    ControlResult,
    EngineInfo,
    EngineStats,
    EngineStatus,
    FromEngine,
    StepOutputs,
)
from pagemill.errors import EngineDeadError, InvalidParams, PageMillError
from pagemill.frontend.board import Board, LoneBoard
from pagemill.frontend.grammar_checks import GrammarChecks
from pagemill.frontend.mailbox import Mailbox, Tap
from pagemill.frontend.monitor import EngineMonitor
from pagemill.frontend.output_processor import OutputProcessor
from pagemill.frontend.outputs import ChoiceUpdate, PooledOutput, Prompt
from pagemill.frontend.pace import PacedProcessor
from pagemill.frontend.pooling import (
    PoolingProcessor,
    check_ended_well,
    pooling_request,
    read_output,
    resolve_pooling_params,
)
from pagemill.frontend.queue_limit import QueueLimit
from pagemill.frontend.submission import PromptHasher, engine_request_id, engine_requests
from pagemill.frontend.tokenizer import Tokenizer
from pagemill.frontend.validate import RequestValidator
from pagemill.params import PoolingParams, SamplingParams

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.25
POOLED_AT_ONCE = 512  # prompts of one call for vectors that the engine holds: a few full steps
DRAIN_SECONDS = 0.1  # for the last messages of an engine that has ended


class EngineHandle(Protocol):
    """A started engine process."""

    @property
    def address(self) -> EngineAddress: ...

    def exit_cause(self) -> str | None: ...

    def stop(self) -> None: ...


@dataclass(slots=True)
class _OpenChoice:
    """One engine request that has not ended: who reads it and what turns tokens into text."""

    processor: OutputProcessor | PacedProcessor | PoolingProcessor
    mailbox: Mailbox
    num_waiting: int = 0  # tokens of the prompt until the first one comes; 0: not counted


class ZmqEngineClient:
    """An `EngineClient` for one engine process. All methods run on one event loop.

    `start` begins to listen, `attach` gives what needs the model's files, `close` ends the
    process. Requests are `<id>-<choice>` to the engine.
    """

    def __init__(
        self,
        engine: EngineHandle,
        config: EngineConfig,
        *,
        client_id: int = 0,
        monitor: EngineMonitor | None = None,
        board: Board | None = None,
    ) -> None:
        self._engine = engine
        self._validator: RequestValidator | None = None
        self._tokenizer: Tokenizer | None = None
        self._client_id = client_id
        self._monitor = monitor or EngineMonitor()
        self._hasher = PromptHasher(config)
        self._board = board or LoneBoard()
        self._limit = QueueLimit(
            config.max_num_queued_reqs,
            max_tokens=config.max_num_queued_tokens,
            board=self._board,
        )
        self._grammars = GrammarChecks()
        self._choices: dict[str, _OpenChoice] = {}  # by engine request id
        self._requests: dict[str, list[str]] = {}  # request id -> engine request ids
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._call_ids = itertools.count()
        self._channel: ClientChannel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._settled = asyncio.Event()  # ready or failed

    def attach(self, validator: RequestValidator, tokenizer: Tokenizer | None) -> None:
        """Must come before the first request; the files may be read while the engine loads."""
        self._validator = validator
        self._tokenizer = tokenizer

    async def start(self) -> None:
        """Begin to listen to the engine and to watch its process."""
        self._channel = ClientChannel(self._engine.address, self._client_id)
        self._tasks = [
            asyncio.create_task(self._listen(self._channel), name="engine-listen"),
            asyncio.create_task(self._watch(), name="engine-watch"),
        ]

    async def wait_ready(self) -> EngineInfo:
        """Wait until the engine has loaded. Raises EngineDeadError with the cause if it cannot."""
        await self._settled.wait()
        if self._monitor.failed:
            raise EngineDeadError(self.status.detail)
        return self.info

    async def close(self) -> None:
        """End the engine process; open requests end with an error."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail("the server is shutting down")
        self._grammars.close()
        await asyncio.to_thread(self._engine.stop)
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    @property
    def status(self) -> EngineStatus:
        return self._monitor.status

    @property
    def info(self) -> EngineInfo:
        return self._monitor.info

    @property
    def stats(self) -> EngineStats:
        return self._monitor.stats

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str | None = None,
        lora: str | None = None,
        tap: Tap | None = None,
    ) -> AsyncGenerator[ChoiceUpdate, None]:
        """See `EngineClient.generate`."""
        params = self._resolve(prompt, params)
        if params.max_tokens == 0 and params.prompt_logprobs is None:
            for index in range(params.n):
                yield ChoiceUpdate(index, finish_reason="length")
            return
        arrival_time = time.monotonic()
        if params.structured_outputs is not None:
            await self._grammars.check(params.structured_outputs)
        hashes = await self._hasher.hash(prompt, self.info.block_size, cache_salt, lora)
        additions = engine_requests(request_id, self._client_id, prompt, hashes, params)
        for addition in additions:
            addition.lora, addition.priority = lora, priority
            addition.arrival_time = arrival_time
        mailbox = Mailbox(tap)
        engine_ids = [a.request_id for a in additions]
        self._open(request_id, params, engine_ids, mailbox, len(prompt.token_ids))
        try:
            for addition in additions:
                self._send(addition)
            num_open = params.n
            while num_open:
                for update in await mailbox.take():
                    num_open -= update.finish_reason is not None
                    yield update
        finally:
            self._close_request(request_id)

    async def pool(
        self,
        prompts: Sequence[Prompt],
        params: PoolingParams,
        *,
        request_id: str,
        priority: int = 0,
    ) -> list[PooledOutput]:
        """See `EngineClient.pool`. Only some of many prompts are with the engine at any time."""
        additions = await self._pooling_requests(prompts, params, request_id)
        for addition in additions:
            addition.priority = priority
        num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        updates = await self._run_some_at_once(request_id, additions, num_tokens)
        return [
            read_output(updates[index], params, len(prompt.token_ids))
            for index, prompt in enumerate(prompts)
        ]

    async def _pooling_requests(
        self, prompts: Sequence[Prompt], params: PoolingParams, request_id: str
    ) -> list[AddRequest]:
        info, validator = self.info, self._need_validator()
        additions = []
        for index, prompt in enumerate(prompts):
            validator.check_prompt(prompt)
            own = resolve_pooling_params(prompt, params, info)
            hashes = await self._hasher.hash(prompt, info.block_size, None, None)
            name = engine_request_id(self._client_id, request_id, index)
            additions.append(pooling_request(name, self._client_id, prompt, hashes, own))
        return additions

    async def _run_some_at_once(
        self, request_id: str, additions: list[AddRequest], num_tokens: int
    ) -> dict[int, ChoiceUpdate]:
        """Each request's update by its index. Their tokens count as waiting until all are done."""
        names = [addition.request_id for addition in additions]
        self._reserve(request_id, names, min(len(names), POOLED_AT_ONCE), num_tokens)
        try:
            return await self._run_in_turn(additions)
        finally:
            self._limit.started(num_tokens)
            self._close_request(request_id)

    async def _run_in_turn(self, additions: list[AddRequest]) -> dict[int, ChoiceUpdate]:
        mailbox, following = Mailbox(), iter(enumerate(additions))

        def start(index: int, addition: AddRequest) -> None:
            self._choices[addition.request_id] = _OpenChoice(PoolingProcessor(index), mailbox)
            self._board.set_choices(len(self._choices))
            self._send(addition)

        for index, addition in itertools.islice(following, POOLED_AT_ONCE):
            start(index, addition)
        updates: dict[int, ChoiceUpdate] = {}
        while len(updates) < len(additions):
            for update in await mailbox.take():
                if self._monitor.failed:
                    raise EngineDeadError(self.status.detail)
                check_ended_well(update)
                updates[update.index] = update
                for index, addition in itertools.islice(following, 1):
                    start(index, addition)
        return updates

    async def abort(self, request_ids: list[str]) -> int:
        """See `EngineClient.abort`; the generators end with finish_reason "abort"."""
        found = [i for i in request_ids if i in self._requests]
        open_ids = [e for i in found for e in self._requests[i] if e in self._choices]
        if open_ids:
            self._send(AbortRequests(open_ids))
        return len(found)

    def abort_client(self, client_id: int) -> None:
        """Abort everything of another frontend, which is gone."""
        self._send(AbortClient(client_id))

    async def control(self, method: str, *args: Any) -> Any:
        """See `EngineClient.control`."""
        _ = self.info  # raises EngineDeadError
        call_id = next(self._call_ids)
        future = self._calls[call_id] = asyncio.get_running_loop().create_future()
        try:
            self._send(Control(call_id, self._client_id, method, list(args)))
            return await future
        finally:
            del self._calls[call_id]

    def _resolve(self, prompt: Prompt, params: SamplingParams) -> SamplingParams:
        info = self.info
        return self._need_validator().resolve(prompt, params, info.max_model_len)

    def _need_validator(self) -> RequestValidator:
        if self._validator is None:
            raise EngineDeadError("the tokenizer is still loading")
        return self._validator

    def _open(
        self,
        request_id: str,
        params: SamplingParams,
        engine_ids: list[str],
        mailbox: Mailbox,
        num_tokens: int,
    ) -> None:
        """Register the choices. Raises before anything is registered."""
        self._reserve(request_id, engine_ids, params.n, params.n * num_tokens)
        for index, engine_id in enumerate(engine_ids):
            processor = self._processor(index, params)
            self._choices[engine_id] = _OpenChoice(processor, mailbox, num_tokens)
        self._board.set_choices(len(self._choices))

    def _processor(self, index: int, params: SamplingParams) -> OutputProcessor | PacedProcessor:
        processor = OutputProcessor(index, params, self._tokenizer)
        if params.stream_interval == 1:
            return processor
        return PacedProcessor(processor, params.stream_interval)

    def _reserve(
        self, request_id: str, engine_ids: list[str], num_at_once: int, num_tokens: int
    ) -> None:
        """Take the ids, if there is room for so many requests and waiting tokens.

        Raises OverloadedError and InvalidParams.
        """
        if request_id in self._requests:
            raise InvalidParams(f"request id {request_id!r} is already in use", "request_id")
        num_open = len(self._choices) + self._board.choices_elsewhere()
        self._limit.check(num_at_once, num_open, self.info.max_num_seqs)
        self._limit.queue(num_tokens)
        self._requests[request_id] = engine_ids

    def _close_request(self, request_id: str) -> None:
        """Forget the request, and abort whatever of it still runs."""
        engine_ids = self._requests.pop(request_id)
        running = []
        for engine_id in engine_ids:
            choice = self._choices.pop(engine_id, None)
            if choice is not None:
                self._limit.started(choice.num_waiting)
                running.append(engine_id)
        if running:
            self._board.set_choices(len(self._choices))
            self._send(AbortRequests(running))

    def _send(self, message: Any) -> None:
        if self._channel is not None and not self._monitor.failed:
            self._channel.send(message)

    async def _listen(self, channel: ClientChannel) -> None:
        await channel.listen(self._handle)

    def _handle(self, message: FromEngine) -> None:
        if isinstance(message, StepOutputs):
            self._monitor.alive(message.stats)
            self._dispatch(message)
        elif isinstance(message, ControlResult):
            self._monitor.alive()
            self._answer(message)
        else:
            self._monitor.observe(message)
            if self._monitor.failed:
                self._fail(message.detail)
            elif message.info is not None:
                self._settled.set()

    def _dispatch(self, outputs: StepOutputs) -> None:
        stopped = []
        for delta in outputs.deltas:
            choice = self._choices.get(delta.request_id)
            if choice is None:
                continue
            if choice.num_waiting:
                self._limit.started(choice.num_waiting)
                choice.num_waiting = 0
            update = choice.processor.process(delta)
            if update is not None:
                choice.mailbox.put(update)
            if choice.processor.finished:
                del self._choices[delta.request_id]
                self._limit.finished()
                self._board.set_choices(len(self._choices))
                if choice.processor.stopped_early:
                    stopped.append(delta.request_id)
        if stopped:
            self._send(AbortRequests(stopped))

    def _answer(self, result: ControlResult) -> None:
        future = self._calls.get(result.call_id)
        if future is None or future.done():
            return
        if result.error is None:
            future.set_result(result.result)
        else:
            future.set_exception(PageMillError(result.error))

    async def _watch(self) -> None:
        """Notice the end of the process, however it came."""
        while not self._monitor.failed:
            await asyncio.sleep(WATCH_SECONDS)
            cause = self._engine.exit_cause()
            if cause is not None:
                await asyncio.sleep(DRAIN_SECONDS)  # a status with the cause may be on its way
                self._fail(cause)

    def _fail(self, detail: str) -> None:
        """End every open request and call; nothing can be started any more."""
        if not self._monitor.failed:
            self._monitor.fail(detail)
        self._settled.set()
        choices, self._choices = self._choices, {}
        self._board.set_choices(0)
        self._board.set_queued_tokens(0)
        for choice in choices.values():
            update = choice.processor.fail(detail)
            if update is not None:
                choice.mailbox.put(update)
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineDeadError(detail))

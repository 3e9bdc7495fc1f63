"""One API call's generations: its prompts and choices as one stream of updates, counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from pagemill.api.context import RequestScope, ServerContext
from pagemill.api.direct import DirectPath
from pagemill.api.errors import GenerationError
from pagemill.api.responses import PromptTokensDetails, Usage
from pagemill.frontend.mailbox import Tap
from pagemill.frontend.outputs import ChoiceUpdate, Prompt, refusal
from pagemill.metrics.metrics import RequestObservation
from pagemill.params import SamplingParams

logger = logging.getLogger(__name__)

MIN_READY_UPDATES = 16

Updates = AsyncGenerator[list[ChoiceUpdate], None]


@dataclass
class Generation:
    """The prompts of one call, each with `params.n` choices, under one response id.

    Choice `i` of prompt `p` has the index `p * params.n + i`. `drop_tokens` is for scoring with
    `max_tokens` 0: the engine makes one token, and the answer leaves it out.
    """

    context: ServerContext
    scope: RequestScope
    prompts: list[Prompt]
    params: SamplingParams
    id_prefix: str
    priority: int = 0
    cache_salt: str | None = None
    drop_tokens: bool = False
    direct: DirectPath | None = None  # where to write updates at once; only for one choice
    response_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.response_id = f"{self.id_prefix}-{self.scope.request_id}"
        self.scope.prompt_tokens = sum(len(prompt.token_ids) for prompt in self.prompts)

    @property
    def is_single(self) -> bool:
        """Whether there is one choice only."""
        return self.num_choices == 1

    @property
    def num_choices(self) -> int:
        """Of all prompts together."""
        return len(self.prompts) * self.params.n

    def prompt_of(self, index: int) -> Prompt:
        """The prompt that a choice belongs to."""
        return self.prompts[index // self.params.n]

    def usage(self) -> Usage:
        """The counts up to now."""
        scope = self.scope
        total = scope.prompt_tokens + scope.completion_tokens
        details = PromptTokensDetails(scope.cached_tokens)
        return Usage(scope.prompt_tokens, scope.completion_tokens, total, details)

    async def updates(self) -> Updates:
        """What came newly, at least one update at a time. Closing it aborts everything."""
        with self.context.admission.track(self.response_id, len(self.prompts)) as (name, ids):
            self.response_id = self.scope.response_id = name
            sources = [self._observed(p, ids[p]) for p in range(len(self.prompts))]
            if self.is_single:
                async with aclosing(sources[0]) as source:
                    async for update in source:
                        yield [update]
                return
            async with aclosing(_merged(sources)) as stream:
                async for updates in stream:
                    yield updates

    async def _observed(self, p: int, request_id: str) -> AsyncGenerator[ChoiceUpdate, None]:
        """The updates of prompt `p`, counted for usage and metrics.

        Raises GenerationError, or RequestError when the engine finds the request at fault.
        """
        prompt = self.prompts[p]
        metrics = self.context.metrics
        now = self.context.clock.monotonic
        cached = 0
        with metrics.request(len(prompt.token_ids), self.params, now) as observation:
            self.scope.generations.append(observation)
            stream = self.context.client.generate(
                prompt,
                self.params,
                request_id=request_id,
                priority=self.priority,
                cache_salt=self.cache_salt,
                tap=None if self.direct is None else self._tap(self.direct, observation),
            )
            async with aclosing(stream):
                async for update in stream:
                    if self.direct is not None:
                        self.direct.check()
                    observation.update(update)
                    self._raise_if_failed(update)
                    self.scope.cached_tokens += max(0, update.num_cached_tokens - cached)
                    cached = max(cached, update.num_cached_tokens)
                    update.index += p * self.params.n
                    if self.drop_tokens:
                        _drop_tokens(update)
                    self.scope.completion_tokens += len(update.token_ids)
                    yield update

    def _tap(self, direct: DirectPath, observation: RequestObservation) -> Tap:
        """Writes what can be written at once, and counts it."""
        scope, write, observe = self.scope, direct.write, observation.update

        def tap(update: ChoiceUpdate) -> bool:
            num_tokens = len(update.token_ids)
            scope.completion_tokens += num_tokens  # first, for what is written may tell it
            if not write(update):
                scope.completion_tokens -= num_tokens
                return False
            observe(update)
            return True

        return tap

    def _raise_if_failed(self, update: ChoiceUpdate) -> None:
        if update.finish_reason in ("abort", "error"):
            self.context.check_awake()  # it was going to sleep: another time, perhaps
        if update.finish_reason == "error":
            refused = refusal(update.error, update.error_param)
            if refused is not None:
                raise refused
            logger.error("request %s failed: %s", self.scope.request_id, update.error)
            raise GenerationError("The engine could not finish this request")


def _drop_tokens(update: ChoiceUpdate) -> None:
    update.text = ""
    update.token_ids = []
    update.logprobs = None if update.logprobs is None else []
    if update.finish_reason is not None:
        update.finish_reason = "length"
        update.stop_reason = None


async def _merged(sources: list[AsyncGenerator[ChoiceUpdate, None]]) -> Updates:
    """Everything that all sources have ready, at once. The first failure ends them all."""
    queue: asyncio.Queue[ChoiceUpdate | asyncio.Task[None]] = asyncio.Queue()
    room = asyncio.Semaphore(max(MIN_READY_UPDATES, len(sources)))
    pumps = [asyncio.create_task(_pump(source, queue, room)) for source in sources]
    for pump in pumps:
        pump.add_done_callback(queue.put_nowait)
    num_running = len(pumps)
    try:
        while num_running:
            ready = [await queue.get()]
            while not queue.empty():
                ready.append(queue.get_nowait())
            updates = [item for item in ready if isinstance(item, ChoiceUpdate)]
            if updates:
                yield updates
            for item in ready:
                if isinstance(item, ChoiceUpdate):
                    room.release()
                else:
                    num_running -= 1
                    item.result()
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    source: AsyncGenerator[ChoiceUpdate, None],
    queue: asyncio.Queue[ChoiceUpdate | asyncio.Task[None]],
    room: asyncio.Semaphore,
) -> None:
    """Move updates over; `room` keeps a slow reader's backlog in the engine client, merged."""
    async with aclosing(source):
        async for update in source:
            await room.acquire()
            queue.put_nowait(update)

"""Runs the lines of a batch: several at once, each written as soon as it is answered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import msgspec
from starlette.types import ASGIApp

from pagemill.api.batch.calls import Answer, call
from pagemill.api.batch.lines import (
    BadLine,
    BatchLine,
    BatchOutput,
    Line,
    LineError,
    LineResponse,
)
from pagemill.errors import EngineDeadError
from pagemill.frontend.base import EngineClient

OVERLOADED = 503
MAX_RETRY_SECONDS = 30
_LINES_AT_ONCE = 64

Write = Callable[[BatchOutput, Answer | None], Awaitable[None]]
Place = Callable[[], AbstractAsyncContextManager[None]]


class LineQueue:
    """Lines for several workers, read in a thread a few at a time; those in `done` are left out."""

    def __init__(self, lines: Iterator[Line], done: Collection[int]) -> None:
        self._lines = (line for line in lines if line.number not in done)
        self._ready: deque[Line] = deque()
        self._lock = asyncio.Lock()

    async def take(self) -> Line | None:
        """The next line; None when there is none left."""
        async with self._lock:
            if not self._ready:
                self._ready += await asyncio.to_thread(self._read)
            return self._ready.popleft() if self._ready else None

    def _read(self) -> list[Line]:
        return list(islice(self._lines, _LINES_AT_ONCE))


@dataclass
class Execution:
    """How the lines of one batch are run.

    A request holds a `place` while it runs. `id_of` names the answer to a line. A line that
    the engine refuses for load is tried again until it is taken.
    """

    app: ASGIApp
    client: EngineClient
    owner: str
    id_of: Callable[[int], str]
    write: Write
    place: Place
    _writes: set[asyncio.Future[None]] = field(default_factory=set)

    async def run(self, queue: LineQueue, max_inflight: int) -> None:
        """Run all lines of the queue. Raises what `write` raises, and EngineDeadError."""
        workers = [asyncio.create_task(self._work(queue)) for _ in range(max_inflight)]
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for worker in workers:
                worker.cancel()
            results = await asyncio.gather(*workers, return_exceptions=True)
            results += await asyncio.gather(*self._writes, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _work(self, queue: LineQueue) -> None:
        while (line := await queue.take()) is not None:
            if isinstance(line, BadLine):
                await self._write(self.bad_output(line), None)
                continue
            async with self.place():
                answer = await self._answer(line)
            response = LineResponse(answer.status, answer.request_id, msgspec.Raw(answer.body))
            await self._write(
                BatchOutput(self.id_of(line.number), line.custom_id, response), answer
            )

    async def _write(self, output: BatchOutput, answer: Answer | None) -> None:
        """Write what was computed, even if the run is cancelled meanwhile."""
        writing = asyncio.ensure_future(self.write(output, answer))
        self._writes.add(writing)
        writing.add_done_callback(self._writes.discard)
        await asyncio.shield(writing)

    def bad_output(self, line: BadLine) -> BatchOutput:
        """The answer to a line that is no request."""
        error = LineError("invalid_line", f"line {line.number}: {line.message}")
        return BatchOutput(self.id_of(line.number), line.custom_id, error=error)

    async def _answer(self, line: BatchLine) -> Answer:
        request = partial(call, self.app, line.url, line.body, self.owner, self.id_of(line.number))
        while (answer := await request()).status == OVERLOADED:
            await asyncio.sleep(min(answer.retry_after, MAX_RETRY_SECONDS))
        status = self.client.status
        if answer.status >= 500 and status.state == "failed":
            raise EngineDeadError(status.detail or "the engine has stopped")
        return answer

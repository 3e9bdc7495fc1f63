"""The owner's view of the further frontends: start, watch, ask, end."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from pagemill.cli.workers.control import Question, ask, decode
from pagemill.cli.workers.launch import WorkerFiles, WorkerLaunch, WorkerProcess
from pagemill.engine.messages import EngineInfo
from pagemill.errors import EngineDeadError
from pagemill.frontend.board import SharedBoard
from pagemill.metrics.merge import Family, add

logger = logging.getLogger(__name__)

QUICK_DEATH_SECONDS = 10.0  # a frontend that lives shorter counts as one that cannot live
MAX_QUICK_DEATHS = 3
STOP_SECONDS = 4.0
POLL_SECONDS = 0.05


class Process(Protocol):
    """A `WorkerProcess`, or a test's."""

    def exit_cause(self) -> str | None: ...

    def terminate(self) -> None: ...

    def wait(self, timeout: float) -> None: ...


@dataclass(slots=True)
class _Worker:
    """One frontend, over all processes that it has been."""

    launch: WorkerLaunch
    listener: socket.socket
    process: Process
    started: float
    quick_deaths: int = 0
    known: list[Family] = field(default_factory=list)  # its counts when last asked
    retired: list[Family] = field(default_factory=list)  # those of processes that have died


class WorkerPool:
    """The frontends beyond the owner; also the owner's `Peers`.

    `on_death` is told the client id of a frontend that has died, whose requests the engine is to
    abort. Its listening socket stays open, so new connections wait for the next process.
    """

    def __init__(
        self,
        first: WorkerLaunch,
        listeners: Sequence[socket.socket],
        board: SharedBoard,
        on_death: Callable[[int], None],
        spawn: Callable[[WorkerLaunch, socket.socket], Process] = WorkerProcess,
    ) -> None:
        self._spawn = spawn
        self._board = board
        self._on_death = on_death
        self._files = WorkerFiles(first.files.folder)
        self._info: EngineInfo | None = None
        self._workers = [self._start(first, i + 1, own) for i, own in enumerate(listeners)]

    async def wait_ready(self, info: EngineInfo) -> None:
        """Wait until all take requests. Raises EngineDeadError when one cannot be started."""
        self._info = info
        for worker in self._workers:
            while not decode(await self._ask(worker, Question("ready")), bool | None):
                self.check()
                await asyncio.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Replace frontends that have died. Raises EngineDeadError after several quick deaths."""
        for worker in self._workers:
            cause = worker.process.exit_cause()
            if cause is not None:
                self._replace(worker, cause)

    def stop(self) -> None:
        """End all processes; blocks for up to some seconds."""
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
            worker.listener.close()

    async def metrics(self) -> Sequence[Sequence[Family]]:
        """See `Peers.metrics`. What died keeps its counts, as they were when last asked."""
        answers = await asyncio.gather(*(self._ask(w, Question("metrics")) for w in self._workers))
        for worker, answer in zip(self._workers, answers, strict=True):
            worker.known = decode(answer, list[Family]) or worker.known
        return [part for w in self._workers for part in (w.known, w.retired) if part]

    async def abort(self, request_ids: list[str]) -> int:
        """See `Peers.abort`."""
        question = Question("abort", request_ids)
        answers = await asyncio.gather(*(self._ask(w, question) for w in self._workers))
        return sum(decode(answer, int) or 0 for answer in answers)

    def _start(self, first: WorkerLaunch, client_id: int, listener: socket.socket) -> _Worker:
        launch = msgspec.structs.replace(
            first, client_id=client_id, listener_fd=listener.fileno(), info=self._info
        )
        return _Worker(launch, listener, self._spawn(launch, listener), time.monotonic())

    def _replace(self, worker: _Worker, cause: str) -> None:
        client_id = worker.launch.client_id
        lived = time.monotonic() - worker.started
        worker.quick_deaths = worker.quick_deaths + 1 if lived < QUICK_DEATH_SECONDS else 0
        logger.error(
            "frontend %d %s; the connections it had are lost and their requests aborted",
            client_id,
            cause,
        )
        self._board.clear(client_id)
        self._on_death(client_id)
        worker.retired, worker.known = add(worker.retired, worker.known), []
        if worker.quick_deaths >= MAX_QUICK_DEATHS:
            raise EngineDeadError(f"frontend {client_id} cannot be kept running: it {cause}")
        worker.process.wait(0)
        worker.launch = msgspec.structs.replace(worker.launch, info=self._info)
        worker.process = self._spawn(worker.launch, worker.listener)
        worker.started = time.monotonic()

    async def _ask(self, worker: _Worker, question: Question) -> bytes | None:
        return await ask(self._files.control(worker.launch.client_id), question)

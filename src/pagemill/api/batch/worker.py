"""Runs the open batches of a data directory beside the requests of the server."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from dataclasses import dataclass, field

from starlette.types import ASGIApp

from pagemill.api.batch.gate import Gate
from pagemill.api.batch.job import Job
from pagemill.api.batch.journal import JournalError
from pagemill.api.batch.objects import Batch, BatchIssue, BatchIssues, StoredBatch
from pagemill.api.batch.storage import BatchStorage
from pagemill.api.batch.store import BatchStore
from pagemill.api.context import ServerContext
from pagemill.errors import EngineDeadError

logger = logging.getLogger(__name__)

MAX_JOBS = 8  # batches at once; all share the places of one gate
MAX_JOBS_EACH = 2  # of one key, which may have many more open: others do not wait behind them
POLL_SECONDS = 1.0  # other processes may add and cancel batches, too
REST_SECONDS = 30.0  # before what failed for want of disk or engine is tried again
SWEEP_SECONDS = 60.0
_TROUBLE = (OSError, sqlite3.Error)  # of the disk, which may pass


@dataclass
class BatchWorker:
    """`run` it while the server takes requests; cancelling it leaves every batch to go on later."""

    context: ServerContext
    storage: BatchStorage
    app: ASGIApp
    poll_seconds: float = POLL_SECONDS
    rest_seconds: float = REST_SECONDS
    _jobs: dict[str, tuple[Job, asyncio.Task[None]]] = field(default_factory=dict)
    _resting: dict[str, float] = field(default_factory=dict)  # until when, by batch
    _next_sweep: float = 0.0

    async def run(self) -> None:
        """Work until cancelled; of several processes with one directory only one works."""
        while not self.storage.become_worker():
            await asyncio.sleep(self.poll_seconds)
        gate = Gate(self.context.client, self.context.admission)
        try:
            while True:
                try:
                    await self._look(gate)
                except _TROUBLE as error:
                    logger.error("batches wait: %s", error)
                    await asyncio.sleep(self.rest_seconds)
                await self._wait()
        finally:
            tasks = [task for _, task in self._jobs.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, gate: Gate) -> None:
        """End, start and delete what is due."""
        self.storage.news.clear()
        await self._end_jobs()
        open_batches = await self.storage.run(BatchStore.open_batches)
        self._start_jobs(open_batches, gate)
        await self._sweep(open_batches)

    def _start_jobs(self, open_batches: list[StoredBatch], gate: Gate) -> None:
        """Start what is new, and tell those that run that they are cancelled."""
        now = self.context.clock.monotonic()
        for stored in open_batches:
            batch_id = stored.batch.id
            if batch_id in self._jobs:
                if stored.batch.status == "cancelling":
                    self._jobs[batch_id][0].stop.set()
            elif self._has_room(stored.owner) and self._resting.get(batch_id, 0.0) <= now:
                job = Job(stored, self.context, self.storage, self.app, gate)
                task = asyncio.create_task(job.run(), name=batch_id)
                task.add_done_callback(lambda _: self.storage.news.set())
                self._jobs[batch_id] = job, task

    def _has_room(self, owner: str) -> bool:
        own = sum(job.stored.owner == owner for job, _ in self._jobs.values())
        return own < MAX_JOBS_EACH and len(self._jobs) < MAX_JOBS

    async def _end_jobs(self) -> None:
        ended = [(job, task) for job, task in self._jobs.values() if task.done()]
        for job, task in ended:
            del self._jobs[job.id]
            self._resting.pop(job.id, None)
            error = task.exception()
            if isinstance(error, (JournalError, EngineDeadError, *_TROUBLE)):
                logger.error("batch %s waits: %s", job.id, error)
                self._resting[job.id] = self.context.clock.monotonic() + self.rest_seconds
            elif error is not None:
                logger.error("batch %s failed", job.id, exc_info=error)
                await self.storage.run(BatchStore.change, job.id, self._fail)

    def _fail(self, batch: Batch) -> None:
        batch.status, batch.failed_at = "failed", int(self.context.clock.wall())
        batch.errors = BatchIssues([BatchIssue("server_error", "The server failed")])

    async def _sweep(self, open_batches: list[StoredBatch]) -> None:
        """Once a minute, delete what is expired and what nobody knows."""
        now = self.context.clock.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_SECONDS
        wall, limits = self.context.clock.wall(), self.storage.limits
        expired = await self.storage.run(BatchStore.drop_expired, wall)
        oldest = wall - limits.keep_seconds if limits.keep_seconds else 0.0
        results = await self.storage.run(BatchStore.drop_ended, oldest, limits.max_ended)
        await self.storage.remove(*expired, *results)
        hexes = [stored.batch.id.removeprefix("batch_") for stored in open_batches]
        kept = {f"file-{digits}{kind}" for digits in hexes for kind in "oe"}
        await self.storage.run(self.storage.remove_orphans, kept)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self.poll_seconds):
                await self.storage.news.wait()
        except TimeoutError:
            return

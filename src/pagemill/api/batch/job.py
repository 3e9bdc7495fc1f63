"""One batch of the HTTP API, from its check to its result; goes on where an earlier try stopped."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Literal

from starlette.types import ASGIApp

from pagemill.api.batch.calls import Answer
from pagemill.api.batch.execution import Execution, LineQueue
from pagemill.api.batch.gate import Gate
from pagemill.api.batch.journal import STAMP_LENGTH, Journal, number_of
from pagemill.api.batch.lines import BatchOutput, LineError, LineReader, Scan, scan
from pagemill.api.batch.objects import (
    Batch,
    BatchIssue,
    BatchIssues,
    FileObject,
    RequestCounts,
    StoredBatch,
)
from pagemill.api.batch.storage import BatchStorage
from pagemill.api.batch.store import BatchStore
from pagemill.api.context import ServerContext

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
OUTPUT_PURPOSE = "batch_output"
_SUCCESS = 200

Ending = Literal["completed", "failed", "cancelled", "expired"]
_WITHOUT_INPUT: dict[str, Ending] = {"finalizing": "completed", "cancelling": "cancelled"}


@dataclass
class Results:
    """The two files that a batch fills."""

    output: Journal
    error: Journal

    def answered(self) -> set[int]:
        """The lines that have their answer."""
        return self.output.done.lines | self.error.done.lines

    def close(self) -> None:
        self.output.close()
        self.error.close()


@dataclass
class Job:
    """Runs one batch. `stop` is set when its client has cancelled it."""

    stored: StoredBatch
    context: ServerContext
    storage: BatchStorage
    app: ASGIApp
    gate: Gate
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    _counts: RequestCounts = field(default_factory=RequestCounts)
    _last_report: float = 0.0

    @property
    def id(self) -> str:
        return self.stored.batch.id

    async def run(self) -> None:
        """Until the batch has ended. Raises JournalError, EngineDeadError, OSError; then it has
        not, and can be run again."""
        batch = self.stored.batch
        try:
            file = self.storage.path(batch.input_file_id).open("rb")
        except FileNotFoundError:
            await self._run_without_input(batch)
            return
        with file:
            if batch.status == "validating":
                batch = await self._validate(file)
            if batch.is_open:
                async with self._results(batch) as results:
                    await self._run(batch, file, results)

    async def _run_without_input(self, batch: Batch) -> None:
        """End a batch whose input is gone for good; what it had answered before is kept.

        If all files are gone, as when a disk is not there, this raises JournalError.
        """
        async with self._results(batch) as results:
            await self._finish(_WITHOUT_INPUT.get(batch.status, "failed"), results)

    @asynccontextmanager
    async def _results(self, batch: Batch) -> AsyncIterator[Results]:
        """The files of results, and their lines counted."""
        results = await asyncio.to_thread(self._open_results)
        try:
            self._counts = RequestCounts(
                batch.request_counts.total,
                len(results.output.done.lines),
                len(results.error.done.lines),
            )
            yield results
        finally:
            results.close()

    async def _run(self, batch: Batch, file: BufferedReader, results: Results) -> None:
        ending: Ending = "cancelled"
        if batch.status != "cancelling":
            ending = await self._execute(file, results)
        if ending == "expired":
            await asyncio.to_thread(self._write_expired, file, results)
        await self._finish(ending, results)

    async def _validate(self, file: BufferedReader) -> Batch:
        """Read all lines once; the batch afterwards, in progress, failed or cancelled."""
        found = await asyncio.to_thread(scan, file, self._reader())
        issues = _issues(found, self.storage.limits.max_requests)
        now = self._now()

        def edit(batch: Batch) -> None:
            batch.request_counts.total = found.num_lines
            if batch.status != "validating":
                return
            if issues:
                batch.status, batch.failed_at = "failed", now
                batch.errors = BatchIssues(issues)
            else:
                batch.status, batch.in_progress_at = "in_progress", now

        return await self._change(edit)

    async def _execute(self, file: BufferedReader, results: Results) -> Ending:
        execution = Execution(
            app=self.app,
            client=self.context.client,
            owner=self.stored.owner,
            id_of=results.output.id_of,
            write=lambda output, answer: self._write(results, output, answer),
            place=self.gate.place,
        )
        queue = LineQueue(self._reader().read(file), results.answered())
        running = asyncio.create_task(execution.run(queue, self.gate.num_places))
        stopping = asyncio.create_task(self.stop.wait())
        left = (self.stored.batch.expires_at or 0) - self.context.clock.wall()
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait({running, stopping}, timeout=max(0, left), return_when=first)
            finished = running.done()
        finally:
            for task in (running, stopping):
                task.cancel()
            await asyncio.gather(running, stopping, return_exceptions=True)
        if finished:
            running.result()
            return "completed"
        return "cancelled" if self.stop.is_set() else "expired"

    async def _write(self, results: Results, output: BatchOutput, answer: Answer | None) -> None:
        response = output.response
        succeeded = response is not None and response.status_code == _SUCCESS
        journal = results.output if succeeded else results.error
        await asyncio.to_thread(journal.append, output.encode())
        journal.done.lines.add(number_of(output.id))
        if succeeded:
            self._counts.completed += 1
        else:
            self._counts.failed += 1
        now = self.context.clock.monotonic()
        if now - self._last_report >= REPORT_SECONDS:
            self._last_report = now
            await self._change(self._set_counts)

    def _write_expired(self, file: BufferedReader, results: Results) -> None:
        """Say of every request that is left that its time was over."""
        done = results.answered()
        error = LineError("batch_expired", "The batch has expired before this request was run")
        for line in self._reader().read(file):
            if line.number not in done:
                output = BatchOutput(results.error.id_of(line.number), line.custom_id, error=error)
                results.error.append(output.encode())
                self._counts.failed += 1

    async def _finish(self, ending: Ending, results: Results) -> None:
        """Make files of the results and end the batch."""
        if ending == "completed":
            await self._change(self._finalize)
        for journal in (results.output, results.error):
            await asyncio.to_thread(journal.sync)
        output = await self._keep(self._output_id, "output", self._counts.completed)
        error = await self._keep(self._error_id, "error", self._counts.failed)
        now = self._now()

        def edit(batch: Batch) -> None:
            self._set_counts(batch)
            batch.output_file_id, batch.error_file_id = output, error
            batch.status = ending
            if ending == "failed":
                batch.errors = BatchIssues([_missing_input(batch)])
            setattr(batch, f"{ending}_at", now)

        await self._change(edit)
        logger.info("batch %s is %s: %s", self.id, ending, self._counts)

    async def _keep(self, file_id: str, what: str, num_lines: int) -> str | None:
        """Make a result known as a file; None, and no file, when it is empty."""
        if not num_lines:
            await self.storage.remove(file_id)
            return None
        now = self._now()
        limits = (self.stored.output_seconds, self.storage.limits.keep_seconds)
        seconds = min((limit for limit in limits if limit), default=0)
        file = FileObject(
            id=file_id,
            bytes=self.storage.path(file_id).stat().st_size,
            created_at=now,
            expires_at=now + seconds if seconds else None,
            filename=f"{self.id}_{what}.jsonl",
            purpose=OUTPUT_PURPOSE,
        )
        await self.storage.run(BatchStore.put_file, self.stored.owner, file)
        return file_id

    def _set_counts(self, batch: Batch) -> None:
        batch.request_counts = self._counts

    def _finalize(self, batch: Batch) -> None:
        self._set_counts(batch)
        batch.status, batch.finalizing_at = "finalizing", self._now()

    async def _change(self, edit: Callable[[Batch], None]) -> Batch:
        return await self.storage.run(BatchStore.change, self.id, edit)

    def _open_results(self) -> Results:
        stamp = hashlib.sha256(self.id.encode()).hexdigest()[:STAMP_LENGTH]
        output = Journal(self.storage.path(self._output_id), stamp)
        try:
            return Results(output, Journal(self.storage.path(self._error_id), stamp))
        except BaseException:
            output.close()
            raise

    def _reader(self) -> LineReader:
        return LineReader((self.stored.batch.endpoint,), self.storage.limits.max_line_bytes)

    @property
    def _output_id(self) -> str:
        return f"file-{self.id.removeprefix('batch_')}o"

    @property
    def _error_id(self) -> str:
        return f"file-{self.id.removeprefix('batch_')}e"

    def _now(self) -> int:
        return int(self.context.clock.wall())


def _missing_input(batch: Batch) -> BatchIssue:
    message = f"The content of {batch.input_file_id} is gone from the server's disk"
    return BatchIssue("missing_input_file", message, "input_file_id")


def _issues(found: Scan, max_requests: int) -> list[BatchIssue]:
    """Why a file cannot be run; empty when it can."""
    issues = [BatchIssue("invalid_line", bad.message, bad.param, bad.number) for bad in found.bad]
    for name, first, again in found.duplicates:
        message = f"custom_id {name!r} is also in line {first}"
        issues.append(BatchIssue("duplicate_custom_id", message, "custom_id", again))
    if not found.num_lines:
        issues.append(BatchIssue("empty_file", "The file holds no request"))
    if found.num_lines > max_requests:
        message = f"The file has {found.num_lines} requests; a batch may have {max_requests}"
        issues.append(BatchIssue("too_many_requests", message))
    return issues

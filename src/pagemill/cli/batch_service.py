"""The engine and the API's endpoints without HTTP, running the lines of one file."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from pagemill.api.app import build_batch_app
from pagemill.api.batch.calls import Answer
from pagemill.api.batch.execution import Execution, LineQueue
from pagemill.api.batch.journal import Journal
from pagemill.api.batch.lines import BatchOutput, Line
from pagemill.api.context import ApiSettings, ServerContext
from pagemill.cli.console import Console
from pagemill.cli.loading import load
from pagemill.cli.stopping import INTERRUPTED, StopSignals, first_of
from pagemill.engine.launch import EngineProcess
from pagemill.frontend.client import ZmqEngineClient
from pagemill.metrics.metrics import Metrics
from pagemill.prepare import Plan

OWNER = "-"
_SPARE_SHARE = 4  # a quarter more than is computed at once, so that a place is never empty
_SPARE_LEAST = 8


@dataclass
class Tally:
    """What has been done of a run; `num_before` were done by earlier ones, failed ones included."""

    num_lines: int
    num_before: int
    num_failed: int = 0
    num_new: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    @property
    def num_left(self) -> int:
        return self.num_lines - self.num_before - self.num_new

    def count(self, output: BatchOutput, answer: Answer | None) -> None:
        """Take note of a line that was written."""
        self.num_new += 1
        self.num_failed += output.response is None or output.response.status_code != 200
        if answer is not None:
            self.prompt_tokens += answer.prompt_tokens
            self.completion_tokens += answer.completion_tokens

    def summary(self) -> str:
        """One line for people."""
        num_done = self.num_before + self.num_new
        text = f"{num_done:,} of {self.num_lines:,} requests answered, {self.num_failed:,} failed"
        if not self.num_new:
            return text
        rate = self.completion_tokens / max(self.seconds, 1e-9)
        return (
            f"{text}; {self.num_new:,} now, in {self.seconds:.1f} s: {self.prompt_tokens:,} prompt "
            f"and {self.completion_tokens:,} output tokens, {rate:,.0f} a second"
        )


@dataclass
class BatchService:
    """One run over one engine process. `tally` counts what is written to `journal`."""

    plan: Plan
    settings: ApiSettings
    engine: EngineProcess
    journal: Journal
    tally: Tally
    console: Console
    _bar: Any = field(init=False)

    async def run(self, lines: Iterator[Line], max_inflight: int) -> None:
        """Run what `journal` does not hold yet; a signal ends it early.

        Raises JournalError, EngineDeadError or ModelLoadError.
        """
        client = ZmqEngineClient(self.engine, self.plan.config)
        context = self._context(client)
        stop = StopSignals(self._end_at_once)
        stop.install()
        await client.start()
        try:
            if await first_of(load(self.plan, context, client, self.console.phase), stop.wait()):
                inflight = max_inflight or _default_inflight(client.info.max_num_seqs)
                await first_of(self._execute(context, lines, inflight), stop.wait())
        finally:
            await client.close()

    async def _execute(self, context: ServerContext, lines: Iterator[Line], inflight: int) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        execution = Execution(
            app=build_batch_app(context),
            client=context.client,
            owner=OWNER,
            id_of=self.journal.id_of,
            write=self._write,
            place=nullcontext,  # nobody else uses the engine
        )
        started = time.monotonic()
        with tqdm(
            total=self.tally.num_lines,
            initial=self.tally.num_before,
            unit=" requests",
            disable=None,  # where nobody watches
        ) as self._bar:
            try:
                await execution.run(LineQueue(lines, self.journal.done.lines), inflight)
            finally:
                self.tally.seconds = time.monotonic() - started

    async def _write(self, output: BatchOutput, answer: Answer | None) -> None:
        await asyncio.to_thread(self.journal.append, output.encode())
        self.tally.count(output, answer)
        self._bar.update()

    def _context(self, client: ZmqEngineClient) -> ServerContext:
        config = self.plan.config
        return ServerContext(
            client=client,
            served_model_names=config.served_model_names,
            metrics=Metrics(config.served_model_names[0], client),
            model_root=config.model,
            default_params=self.plan.default_params,
            settings=self.settings,
        )

    def _end_at_once(self) -> None:
        self.engine.stop(timeout=0)
        sys.stderr.flush()
        os._exit(INTERRUPTED)


def _default_inflight(max_num_seqs: int) -> int:
    return max_num_seqs + max(_SPARE_LEAST, max_num_seqs // _SPARE_SHARE)

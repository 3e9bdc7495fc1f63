"""The engine: requests in, one step at a time, what each step added out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagemill.config.engine import EngineConfig
from pagemill.engine.messages import AddRequest, EngineInfo, EngineStats, RequestDelta
from pagemill.engine.sleep import SleepControl
from pagemill.engine.stats import StepCounters, read_stats
from pagemill.errors import PageMillError, RequestError
from pagemill.executor.base import Executor, PendingResult
from pagemill.scheduler.plan import ScheduledStep
from pagemill.scheduler.request import Grammar
from pagemill.scheduler.scheduler import Scheduler

_COMPILE_POLL_SECONDS = 0.001
_ALL_ALLOWED = -1  # every bit of an int32


class Engine:
    """Schedules, launches and retires steps; at most one step is in flight between calls.

    `grammar` serves requests with `structured_outputs`; without it they are refused. Methods are
    called from one thread. With `config.overlap` a step's deltas come from the next `step`.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        *,
        grammar: Grammar | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = Scheduler(config, executor.info, grammar=grammar, clock=clock)
        self._sleep = SleepControl(self.scheduler, executor)
        self._executor = executor
        self._grammar = grammar
        self._overlap = config.overlap
        self._in_flight: tuple[ScheduledStep, PendingResult] | None = None
        self._unsent: list[RequestDelta] = []  # deltas that no step produced
        self._counters = StepCounters()
        self._mask_width = 0

    @property
    def info(self) -> EngineInfo:
        return self._executor.info

    def add_request(self, message: AddRequest) -> None:
        """Queue a request. One that cannot be served gets its error delta from the next `step`."""
        try:
            self._sleep.check_awake()
            self.scheduler.add(message)
        except PageMillError as error:
            self._unsent.append(
                RequestDelta(
                    message.request_id,
                    message.client_id,
                    finish_reason="error",
                    error=str(error),
                    error_param=error.param if isinstance(error, RequestError) else None,
                )
            )

    def abort(self, request_ids: Sequence[str]) -> None:
        """End requests, whatever they are doing; their last deltas come from the next `step`."""
        self._unsent += self.scheduler.abort(request_ids)

    def has_work(self) -> bool:
        """Whether `step` has anything to do or to tell."""
        return bool(self._unsent or self._in_flight or self.scheduler.has_requests)

    def step(self) -> list[RequestDelta]:
        """Launch the next batch, then retire the one before it while the device works."""
        deltas = self._end_outside_steps()
        step = self.scheduler.schedule()
        if step is None:
            self._wait_for_grammar()
            return deltas + self._retire()
        batch = step.batch
        self._executor.forward(batch)
        if batch.needs_grammar:  # its mask needs the tokens of the step in flight
            deltas += self._retire()
            result = self._executor.sample(batch, self._bitmask(step))
        else:
            result = self._executor.sample(batch)
            deltas += self._retire()
        self._in_flight = step, result
        self._counters.count(batch.num_tokens)
        return deltas if self._overlap else deltas + self._retire()

    def use_idle_time(self) -> bool:
        """Prepare for what may come while there is no work; False when nothing is left to do."""
        return self._executor.use_idle_time()

    def stats(self) -> EngineStats:
        return read_stats(self.scheduler, self._counters, self._sleep.level)

    def reset_prefix_cache(self) -> bool:
        """Forget all cached text, that of running requests included."""
        self.scheduler.reset_prefix_cache()
        return True

    def control(self, method: str, args: list[Any]) -> Any:
        """A rarely used operation; whatever the engine does not know, the executor is asked.

        No step is in flight while it runs.
        """
        self._unsent += self._retire()
        match method, args:
            case "reset_prefix_cache", []:
                return self.reset_prefix_cache()
            case "prepare_sleep", [int(level)]:
                return self._sleep.prepare(level)
            case "sleep", [int(level)]:
                self._unsent += self._sleep.sleep(level)
                return None
            case "wake_up", []:
                return self._sleep.wake_up()
        return self._executor.control(method, args)

    def shutdown(self) -> None:
        """Let go of the device. Open requests are not answered any more."""
        if self._grammar is not None:
            self._grammar.shutdown()
        self._executor.shutdown()

    def _end_outside_steps(self) -> list[RequestDelta]:
        deltas, self._unsent = self._unsent, []
        return deltas + self.scheduler.end_overdue() + self.scheduler.queue_compiled()

    def _retire(self) -> list[RequestDelta]:
        """Wait for the step in flight and read its result."""
        if self._in_flight is None:
            return []
        (step, pending), self._in_flight = self._in_flight, None
        return self.scheduler.update(step, pending.wait())

    def _bitmask(self, step: ScheduledStep) -> NDArray[np.int32] | None:
        """The tokens each grammar row may sample; rows that have ended meanwhile may any."""
        assert self._grammar is not None and step.batch.grammar_rows is not None
        rows = step.batch.grammar_rows
        still_running = self.scheduler.slots.epoch[step.slots[rows]] == step.epochs[rows]
        live = np.flatnonzero(still_running)
        states = [step.requests[row].grammar for row in rows[live].tolist()]
        if states:
            live_mask = self._grammar.bitmask([state for state in states if state is not None])
            self._mask_width = live_mask.shape[1]
            if len(live) == len(rows):
                return live_mask
        mask = np.full((len(rows), self._mask_width), _ALL_ALLOWED, np.int32)
        if states:
            mask[live] = live_mask
        return mask

    def _wait_for_grammar(self) -> None:
        """Leave the processor to the compile when there is nothing else to wait for."""
        if self._in_flight is None and self.scheduler.only_compiles:
            time.sleep(_COMPILE_POLL_SECONDS)

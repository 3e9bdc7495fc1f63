"""Whether the engine sleeps: it then refuses requests, and the executor has given up its memory."""

from __future__ import annotations

from pagemill.engine.messages import RequestDelta
from pagemill.errors import OverloadedError, PageMillError
from pagemill.executor.base import Executor
from pagemill.scheduler.scheduler import Scheduler

LEVELS = (1, 2)


class SleepControl:
    """Puts an engine to sleep and wakes it. No step may be in flight.

    `level` is 0 while awake; it is set, and requests are refused, before the memory is given up.
    """

    def __init__(self, scheduler: Scheduler, executor: Executor) -> None:
        self.level = 0
        self._asleep = False
        self._scheduler = scheduler
        self._executor = executor

    def check_awake(self) -> None:
        """Raises OverloadedError when no request can be taken."""
        if self.level:
            raise OverloadedError("the model sleeps")

    def prepare(self, level: int) -> int:
        """Refuse new requests from now on; returns how many still run."""
        if level not in LEVELS:
            raise PageMillError(f"sleep has the levels 1 and 2, not {level}")
        self.level = level
        return self._scheduler.num_requests

    def sleep(self, level: int) -> list[RequestDelta]:
        """Abort what still runs and give up the memory; the last deltas of the aborted."""
        self.prepare(level)
        deltas = self._scheduler.abort_all()
        self._scheduler.reset_prefix_cache()
        self._asleep = True
        self._executor.control("sleep", [level])
        return deltas

    def wake_up(self) -> None:
        """Take requests again. Raises ModelLoadError, and then still sleeps."""
        if self._asleep:
            self._executor.control("wake_up", [])
        self._asleep = False
        self.level = 0

"""Whether the engine is alive, judged from what arrives and from what does not."""

from __future__ import annotations

import time
from collections.abc import Callable

from pagemill.engine.messages import EngineInfo, EngineStats, EngineStatus
from pagemill.errors import EngineDeadError

STUCK_SECONDS = 8.0


class EngineMonitor:
    """The engine's last status. A loop that is stuck may recover; a failure is final.

    While the engine loads it sends nothing for long times, so silence counts only once it is ready.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        self.stats = EngineStats()
        self._clock = clock
        self._stuck_seconds = stuck_seconds
        self._status = EngineStatus("loading", phase="starting")
        self._info: EngineInfo | None = None
        self._last_sign = clock()

    def observe(self, status: EngineStatus) -> None:
        """Take note of a status message."""
        self.alive(status.stats)
        if self.failed:
            return
        self._info = status.info or self._info
        self._status = status

    def alive(self, stats: EngineStats | None = None) -> None:
        """Any message is a sign that the loop turns."""
        self._last_sign = self._clock()
        if stats is not None:
            self.stats = stats

    def fail(self, detail: str) -> None:
        """The engine is gone. The first cause stays."""
        if not self.failed:
            self._status = EngineStatus("failed", detail=detail)

    @property
    def failed(self) -> bool:
        return self._status.state == "failed"

    @property
    def status(self) -> EngineStatus:
        silence = self._clock() - self._last_sign
        if self.stats.sleep_level:  # going to sleep and waking up take their time
            return self._status
        if self._status.state == "ready" and silence > self._stuck_seconds:
            return EngineStatus(
                "failed", detail=f"engine loop stuck: no sign of life for {silence:.0f} seconds"
            )
        return self._status

    @property
    def info(self) -> EngineInfo:
        """Raises EngineDeadError before the engine is ready and after it failed."""
        if self.failed:
            raise EngineDeadError(f"the engine has stopped: {self._status.detail}")
        if self._info is None:
            raise EngineDeadError("the engine is still loading")
        return self._info

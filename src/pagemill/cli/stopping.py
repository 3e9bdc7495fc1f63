"""The end of a server: the first signal lets open requests finish, the second ends at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Waits for Ctrl-C or SIGTERM. `at_once` is called at the second one."""

    def __init__(self, at_once: Callable[[], None]) -> None:
        self._first = asyncio.Event()
        self._at_once = at_once

    def install(self) -> None:
        """Take the signals over; for the main thread's event loop."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)

    async def wait(self) -> None:
        """Return at the first signal."""
        await self._first.wait()

    def _on_signal(self) -> None:
        if self._first.is_set():
            self._at_once()
        self._first.set()

"""The end of a server: the first signal lets open requests finish, the second ends at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

INTERRUPTED = 130  # the exit code of a Ctrl-C that ends work, as shells have it
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


async def first_of(*work: Coroutine[Any, Any, None]) -> bool:
    """Run until one is done and cancel the others; whether the first one is done.

    Raises what it raised.
    """
    tasks = [asyncio.create_task(item) for item in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.result()
    return not tasks[0].cancelled()

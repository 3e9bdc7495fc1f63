"""Files and batches of a server: where they are kept, and the worker that runs them.

What they need is imported only where they are on, since the engine starts after this.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from pagemill.config.args import ServeArgs

DAY_SECONDS = 24 * 3600

if TYPE_CHECKING:
    from pagemill.api.batch.storage import BatchStorage
    from pagemill.api.context import ServerContext


class Batching:
    """Of the one process that owns the data directory. Does nothing without `--data-dir`."""

    def __init__(self, args: ServeArgs) -> None:
        """Raises ConfigError when the directory cannot be used."""
        self.storage: BatchStorage | None = None
        self._task: asyncio.Task[None] | None = None
        if args.data_dir is not None:
            from pagemill.api.app import BATCH_URLS
            from pagemill.api.batch.storage import BatchLimits, BatchStorage

            limits = BatchLimits(
                max_line_bytes=args.max_body_bytes, keep_seconds=args.batch_retention * DAY_SECONDS
            )
            self.storage = BatchStorage(Path(args.data_dir), BATCH_URLS, limits)

    def start(self, context: ServerContext) -> None:
        """Go on with what is open; the model has been loaded."""
        if self.storage is not None:
            from pagemill.api.app import build_batch_app
            from pagemill.api.batch.worker import BatchWorker

            worker = BatchWorker(context, self.storage, build_batch_app(context))
            self._task = asyncio.create_task(worker.run(), name="batch-worker")

    async def stop(self) -> None:
        """Interrupt the batches; the next start goes on with them."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def close(self) -> None:
        """Let go of the directory."""
        if self.storage is not None:
            self.storage.close()

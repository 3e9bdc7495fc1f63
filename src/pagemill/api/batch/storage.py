"""The data directory: a database and a folder of files, used from a thread of their own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Concatenate, ParamSpec, TypeVar

from pagemill.api.batch.store import BatchStore
from pagemill.api.batch.uploads import UploadQueue
from pagemill.errors import ConfigError, OverloadedError

P = ParamSpec("P")
T = TypeVar("T")

_FULL_RETRY_SECONDS = 60
_ORPHAN_SECONDS = 24 * 3600
_PRIVATE = 0o700


@dataclass(frozen=True)
class BatchLimits:
    """Bounds on files and batches."""

    max_file_bytes: int = 200 * 2**20
    max_files: int = 1000  # by key
    max_total_bytes: int = 20 * 2**30  # of all keys
    max_requests: int = 50_000  # in a batch
    max_open: int = 100  # batches by key that have not ended
    max_ended: int = 10_000  # batches by key that have; the first to end are forgotten first
    keep_seconds: int = 30 * 24 * 3600  # of an ended batch and its results; 0: no end
    max_line_bytes: int = 8 * 2**20
    upload_timeout: float = 600.0  # seconds for a whole file
    pace_bytes: int = 64 * 2**10  # the least of a file in every `pace_seconds`
    pace_seconds: float = 10.0
    max_waiting_uploads: int = 16
    waiting_timeout: float = 60.0  # seconds of an upload in the queue


@dataclass
class BatchStorage:
    """Where files and batches are kept. `urls` are the endpoints that batches may call.

    `news` is set when there may be work for the worker in this process.
    """

    folder: Path
    urls: Collection[str]
    limits: BatchLimits = field(default_factory=BatchLimits)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    uploads: UploadQueue = field(init=False)
    _store: BatchStore = field(init=False)
    _thread: ThreadPoolExecutor = field(init=False)
    _lock: int | None = None

    def __post_init__(self) -> None:
        """Makes the folder. Raises ConfigError when it cannot be used."""
        try:
            (self.folder / "files").mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            self.folder.chmod(_PRIVATE)
        except OSError as error:
            raise ConfigError(f"--data-dir {self.folder} cannot be used: {error}") from None
        self.uploads = UploadQueue(self.limits.max_waiting_uploads, self.limits.waiting_timeout)
        self._store = BatchStore(self.folder / "batches.db")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch-store")

    async def run(
        self, work: Callable[Concatenate[BatchStore, P], T], *args: P.args, **options: P.kwargs
    ) -> T:
        """Call a method of the store in its thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: work(self._store, *args, **options))

    def path(self, file_id: str) -> Path:
        """Where a file's content is. The id must be one of ours."""
        return self.folder / "files" / file_id

    async def write(self, file_id: str, source: IO[bytes]) -> int:
        """Store content; its bytes. Raises OverloadedError when the disk is full."""
        try:
            return await asyncio.to_thread(self._copy, self.path(file_id), source)
        except OSError as error:
            await self.remove(file_id)
            raise disk_error(error) from None

    async def remove(self, *file_ids: str) -> None:
        """Delete content that the store does not know any more."""
        for file_id in file_ids:
            await asyncio.to_thread(self.path(file_id).unlink, missing_ok=True)

    def become_worker(self) -> bool:
        """Whether this process, of all that use the folder, is the one that runs batches."""
        if self._lock is None:
            path = self.folder / "worker.lock"
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                return False
            self._lock = lock
        return True

    def remove_orphans(self, store: BatchStore, kept: Collection[str]) -> None:
        """Delete old files that a crash has left between folder and database."""
        oldest = time.time() - _ORPHAN_SECONDS
        for path in (self.folder / "files").iterdir():
            if path.name in kept or store.has_file(path.name):
                continue
            with suppress(FileNotFoundError):  # a client deletes it just now
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def close(self) -> None:
        """Finish what was begun."""
        self._thread.shutdown()
        self._store.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _copy(self, path: Path, source: IO[bytes]) -> int:
        source.seek(0)
        with path.open("xb") as target:
            shutil.copyfileobj(source, target, 2**20)
            target.flush()
            os.fsync(target.fileno())
            return target.tell()


def new_id(kind: str) -> str:
    """`kind`, and what nobody can guess."""
    return f"{kind}{secrets.token_hex(16)}"


def disk_error(error: OSError) -> OverloadedError:
    """What a client is told when the disk does not take more."""
    return OverloadedError(f"The file cannot be stored: {error.strerror}", _FULL_RETRY_SECONDS)

"""Numbers that several processes share, with a lock on them."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import MutableSequence
from pathlib import Path
from types import TracebackType
from typing import cast

_CELL = 8  # bytes


class SharedCells:
    """Float64 numbers, at first 0, in a file that each process maps. As a context it is the lock.

    The lock belongs to the open file: it keeps other processes out, not other threads.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with self:
            if os.fstat(self._descriptor).st_size < count * _CELL:
                os.ftruncate(self._descriptor, count * _CELL)
        memory = memoryview(mmap.mmap(self._descriptor, count * _CELL))
        self.numbers = cast("MutableSequence[float]", memory.cast("d"))

    def __enter__(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

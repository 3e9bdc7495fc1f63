"""How many requests every frontend process has open, and whether they are to end, in memory that
all of them see.

Each process writes its own row only, and reads the others'. A whole number of eight bytes is
written at once, so no lock is needed. Two processes that check a limit in the same instant may
both find room: a limit can be passed by as many requests as there are processes, less one.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

_CELL = 8  # bytes
_CHOICES, _QUEUED_TOKENS, _DRAINING, _FIRST_KEY = 0, 1, 2, 3  # columns


class Board(Protocol):
    """Open requests here and in other processes."""

    def set_choices(self, count: int) -> None:
        """Engine requests that this process has open."""
        ...

    def choices_elsewhere(self) -> int:
        """Engine requests that the others have open."""
        ...

    def set_queued_tokens(self, count: int) -> None:
        """Tokens of prompts that wait for their first token here."""
        ...

    def queued_tokens_elsewhere(self) -> int:
        """Tokens of prompts that wait in the others."""
        ...

    def set_key(self, key_id: str, count: int) -> None:
        """HTTP requests of a key that this process has open."""
        ...

    def key_elsewhere(self, key_id: str) -> int:
        """HTTP requests of a key that the others have open."""
        ...

    def requests_elsewhere(self) -> int:
        """HTTP requests that the others have open."""
        ...

    def start_drain(self) -> None:
        """Let all processes refuse new requests from now on."""
        ...

    def is_draining(self) -> bool:
        """Whether any of them has said so."""
        ...


class LoneBoard:
    """For a process that has no others."""

    def __init__(self) -> None:
        self._draining = False

    def set_choices(self, count: int) -> None:
        return

    def choices_elsewhere(self) -> int:
        return 0

    def set_queued_tokens(self, count: int) -> None:
        return

    def queued_tokens_elsewhere(self) -> int:
        return 0

    def set_key(self, key_id: str, count: int) -> None:
        return

    def key_elsewhere(self, key_id: str) -> int:
        return 0

    def requests_elsewhere(self) -> int:
        return 0

    def start_drain(self) -> None:
        self._draining = True

    def is_draining(self) -> bool:
        return self._draining


class SharedBoard:
    """A file in memory: a row for each process, with choices, tokens, the drain, and each key."""

    def __init__(self, path: Path, row: int, num_rows: int, key_ids: Sequence[str]) -> None:
        self._columns = {key_id: _FIRST_KEY + i for i, key_id in enumerate(dict.fromkeys(key_ids))}
        self._width = _FIRST_KEY + len(self._columns)
        self._row, self._num_rows = row, num_rows
        size = self._width * num_rows * _CELL
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
            self._memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._cells = memoryview(self._memory).cast("q")

    def set_choices(self, count: int) -> None:
        self._set(_CHOICES, count)

    def choices_elsewhere(self) -> int:
        return self._elsewhere(_CHOICES)

    def set_queued_tokens(self, count: int) -> None:
        self._set(_QUEUED_TOKENS, count)

    def queued_tokens_elsewhere(self) -> int:
        return self._elsewhere(_QUEUED_TOKENS)

    def set_key(self, key_id: str, count: int) -> None:
        self._set(self._columns[key_id], count)

    def key_elsewhere(self, key_id: str) -> int:
        return self._elsewhere(self._columns[key_id])

    def requests_elsewhere(self) -> int:
        return sum(self._elsewhere(column) for column in self._columns.values())

    def start_drain(self) -> None:
        self._set(_DRAINING, 1)

    def is_draining(self) -> bool:
        return any(self._cells[_DRAINING :: self._width])

    def clear(self, row: int) -> None:
        """Forget what a process had open that is gone."""
        for column in range(self._width):
            self._cells[row * self._width + column] = 0

    def close(self) -> None:
        """Let go of the memory."""
        self._cells.release()
        self._memory.close()

    def _set(self, column: int, count: int) -> None:
        self._cells[self._row * self._width + column] = count

    def _elsewhere(self, column: int) -> int:
        rows = range(self._num_rows)
        return sum(self._cells[row * self._width + column] for row in rows if row != self._row)

"""The output of a batch while it is written: appended line by line, and read back to go on.

Every line's id carries the run's stamp and the number of its input line, so the file itself says
which requests are done and which input they belong to; nothing else must be kept in step with it.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pagemill.errors import PageMillError

SYNC_SECONDS = 1.0  # what a power failure may cost; a killed process loses nothing
STAMP_LENGTH = 16
_PREFIX = "batch_req_"


class JournalError(PageMillError):
    """The output cannot be written, or the file that is there belongs to something else."""


class _Status(msgspec.Struct):
    status_code: int


class _Written(msgspec.Struct):
    id: str
    response: _Status | None = None


_decoder = msgspec.json.Decoder(_Written)


@dataclass
class Done:
    """The requests whose answers are in a journal, by line number."""

    lines: set[int] = field(default_factory=set)
    num_failed: int = 0
    num_torn_bytes: int = 0  # of an unfinished last line, which was cut off


class Journal:
    """A file that one process writes. Raises JournalError when it cannot be used.

    A line is written whole or not at all, also when the disk is full. Several threads may append.
    """

    def __init__(self, path: Path, stamp: str, clock: Callable[[], float] = time.monotonic) -> None:
        assert len(stamp) == STAMP_LENGTH
        self._path = path
        self._stamp = stamp
        self._clock = clock
        self._mutex = threading.Lock()
        self._last_sync = clock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise JournalError(f"{path} cannot be written: {error.strerror}") from None
        try:
            self._lock()
            self.done = self._recover()
            self._size = os.fstat(self._file).st_size
        except BaseException:
            os.close(self._file)
            raise

    def id_of(self, number: int) -> str:
        """The id of the answer to an input line."""
        return f"{_PREFIX}{self._stamp}_{number}"

    def append(self, line: bytes) -> None:
        """Write one line, with its end; on the disk within `SYNC_SECONDS`."""
        with self._mutex:
            self._append(line)
            if self._clock() - self._last_sync >= SYNC_SECONDS:
                self.sync()

    def _append(self, line: bytes) -> None:
        try:
            written = os.write(self._file, line)
        except OSError as error:
            written, reason = 0, error.strerror
        else:
            reason = "no space left on device"
        if written < len(line):
            os.ftruncate(self._file, self._size)
            raise JournalError(f"{self._path} cannot be written: {reason}")
        self._size += written

    def sync(self) -> None:
        """Bring everything to the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise JournalError(f"{self._path} cannot be written: {error.strerror}") from None
        self._last_sync = self._clock()

    def close(self) -> None:
        """Also gives up the lock."""
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(f"{self._path} is being written by another process") from None

    def _recover(self) -> Done:
        """Read what is there; an unfinished last line is cut off."""
        done = Done()
        size = os.fstat(self._file).st_size
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                entry = self._entry(line)
                if entry is None and end + len(line) < size:
                    raise JournalError(f"{self._path}: line {number} is damaged")
                if entry is None:
                    break
                self._note(entry, done)
                end += len(line)
        if end < size:
            done.num_torn_bytes = size - end
            os.ftruncate(self._file, end)
        return done

    def _entry(self, line: bytes) -> _Written | None:
        if not line.endswith(b"\n"):
            return None
        try:
            return _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _note(self, entry: _Written, done: Done) -> None:
        stamp, _, number = entry.id.removeprefix(_PREFIX).partition("_")
        if stamp != self._stamp or not number.isdecimal():
            raise JournalError(
                f"{self._path} holds answers to another input, or of another model; "
                "take another file or remove it"
            )
        done.lines.add(int(number))
        done.num_failed += entry.response is None or entry.response.status_code != 200


def number_of(line_id: str) -> int:
    """The number of the input line that an answer's id names."""
    return int(line_id.rpartition("_")[2])

"""Compiles kernels side by side, each in a process of its own.

Threads do not help: most of a compilation holds Python's lock. A child is a fork, so it has the
modules that its parent has imported, and it ends with its kernel, so none waits for another.
"""

from __future__ import annotations

import os
import select
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

BACKGROUND_NICENESS = 10
_MAX_ERROR = 4000  # bytes: fits into a pipe that nobody reads yet
COMPILED, FOUND, FAILED, LOST = 0, 3, 4, 5  # how a child exits


@dataclass(frozen=True, slots=True)
class Work:
    """`run` returns whether there was something to do; what it raises is reported."""

    name: str
    run: Callable[[], bool]


@dataclass(slots=True)
class Tally:
    """What has ended: names of what was compiled, how many were there, errors by name."""

    compiled: list[str] = field(default_factory=list)
    found: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


class ForkPool:
    """At most `size` children at a time, the first submitted first.

    The process must have one thread: what another one holds locked stays locked in a child.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: deque[Work] = deque()
        self._running: dict[int, tuple[int, str]] = {}  # the pipe: the child, its work's name
        self._niceness = 0
        self.tally = Tally()

    def submit(self, work: Work) -> None:
        self._waiting.append(work)
        self.turn(0)

    def to_background(self) -> None:
        """Whatever is begun from now on leaves the cores to others."""
        self._niceness = max(0, BACKGROUND_NICENESS - os.nice(0))

    @property
    def left(self) -> int:
        """How many have not ended."""
        return len(self._running) + len(self._waiting)

    def turn(self, seconds: float) -> None:
        """Begin what fits and take in what has ended; waits for that up to `seconds`."""
        while self._waiting and len(self._running) < self._size:
            self._begin(self._waiting.popleft())
        ready, _, _ = select.select(list(self._running), [], [], seconds)
        for pipe in ready:
            self._end(pipe)

    def _begin(self, work: Work) -> None:
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _run_child(work, writer, self._niceness)
        os.close(writer)
        self._running[reader] = (child, work.name)

    def _end(self, pipe: int) -> None:
        """A pipe ends with its child, which writes less than would block it."""
        child, name = self._running.pop(pipe)
        parts = []
        while part := os.read(pipe, _MAX_ERROR):
            parts.append(part)
        os.close(pipe)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == COMPILED:
            self.tally.compiled.append(name)
        elif code == FOUND:
            self.tally.found += 1
        elif code == FAILED:
            self.tally.failed[name] = b"".join(parts).decode(errors="replace")
        else:  # LOST, or killed, most likely for memory: the engine compiles it alone
            self.tally.lost.append(name)


def _run_child(work: Work, writer: int, niceness: int) -> None:
    """Never returns: nothing of the parent's may be cleaned up here."""
    code = FAILED
    try:
        os.dup2(2, 1)  # the parent's standard output is not for compilers
        os.nice(niceness)
        code = COMPILED if work.run() else FOUND
    except (OSError, MemoryError):
        code = LOST  # of the machine, not of the kernel
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent reports it
        os.write(writer, f"{type(error).__name__}: {error}".encode()[:_MAX_ERROR])
    finally:
        os._exit(code)

"""What the engine and the process that compiles for it tell each other, a line of JSON each."""

from __future__ import annotations

import msgspec

from pagemill.config.engine import EngineConfig
from pagemill.config.facts import DeviceFacts

GO_ON = b"\n"  # to a process in a hurry: the engine has started


class Job(msgspec.Struct, frozen=True):
    """What to compile for, and files to make when what a start needs is done, and when all is."""

    config: EngineConfig
    facts: DeviceFacts
    start_stamp: str
    full_stamp: str
    hurry: bool = True  # a start waits for it


class Progress(msgspec.Struct, frozen=True):
    """Kernels so far: compiled, found in the cache folder, still to come."""

    compiled: int
    found: int
    left: int
    ready: bool = False  # the engine will find all that it needs to start
    lost: int = 0  # not compiled, for reasons that have nothing to do with the kernel
    failed: str = ""  # which kernel does not compile, and why

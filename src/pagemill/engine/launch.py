"""Starts an engine process and tells how it ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pagemill.config.engine import EngineConfig
from pagemill.engine.channel import EngineAddress

_MAX_SOCKET_PATH = 107 - len("/client-000")  # sun_path of Linux holds 108 bytes
ENGINE_COMMAND = (sys.executable, "-P", "-m", "pagemill.engine.process")


class EngineLaunch(msgspec.Struct, frozen=True):
    """What an engine process reads, as one line of JSON, from its standard input."""

    config: EngineConfig
    address: EngineAddress


class EngineProcess:
    """A child that runs `pagemill.engine.process`.

    The child's standard input stays open as long as this process lives: its end tells the child
    that its parent is gone. Ctrl-C reaches only the parent, which decides what to do.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], address: EngineAddress, folder: Path
    ) -> None:
        self.address = address
        self._process = process
        self._folder = folder

    @classmethod
    def start(
        cls,
        config: EngineConfig,
        *,
        num_clients: int = 1,
        command: Sequence[str] | None = None,
    ) -> EngineProcess:
        """Returns at once; the engine reports its progress over the channel.

        `command` runs something else than PageMill's own engine.
        """
        folder = _socket_folder()
        address = EngineAddress.in_folder(folder, num_clients)
        process = subprocess.Popen(
            command or ENGINE_COMMAND, stdin=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(EngineLaunch(config, address)) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; `exit_cause` says how
        return cls(process, address, folder)

    @property
    def folder(self) -> Path:
        """Where the sockets are; only this user may enter it, and it goes with the process."""
        return self._folder

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_cause(self) -> str | None:
        """How the process ended, in words; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"the engine process exited with code {code}"
        if -code == signal.SIGKILL:
            return "the engine process was killed (signal 9), perhaps for lack of memory"
        return f"the engine process died of signal {-code}"

    def stop(self, timeout: float = 5.0) -> None:
        """Ask the process to end, kill it after `timeout` seconds, and remove its sockets."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _socket_folder() -> Path:
    """A folder that only this user may enter, with a path short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="pagemill-"))
    if len(os.fsencode(folder)) > _MAX_SOCKET_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="pagemill-", dir="/tmp"))
    return folder

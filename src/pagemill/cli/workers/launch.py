"""Starts a frontend process and tells how it ended."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from pagemill.config.args import ServeArgs
from pagemill.config.engine import EngineConfig
from pagemill.engine.channel import EngineAddress
from pagemill.engine.messages import EngineInfo

_COMMAND = (sys.executable, "-P", "-m", "pagemill.cli.workers.process")


class WorkerLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """What a frontend process reads, as one line of JSON, from its standard input.

    `info` is there when the engine was ready before. `folder` has the sockets and the board.
    """

    args: ServeArgs
    config: EngineConfig
    chat_template: str | None
    default_params: dict[str, Any]
    keys: tuple[str, ...]
    address: EngineAddress
    engine_pid: int
    client_id: int
    num_frontends: int
    listener_fd: int
    folder: str
    info: EngineInfo | None = None

    @property
    def files(self) -> WorkerFiles:
        return WorkerFiles(Path(self.folder))


class WorkerFiles:
    """The paths that frontends share, in a folder that only this user may enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.board = folder / "board"
        self.rates = folder / "rates"
        self.owner = str(folder / "owner")

    def control(self, client_id: int) -> str:
        """Where a frontend answers the owner."""
        return str(self.folder / f"frontend-{client_id}")


class WorkerProcess:
    """A child that runs `pagemill.cli.workers.process`.

    Like the engine it ends when its standard input does, and leaves Ctrl-C to its parent.
    """

    def __init__(self, launch: WorkerLaunch, listener: socket.socket) -> None:
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(launch) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; `exit_cause` says how

    def exit_cause(self) -> str | None:
        """How the process ended, in words; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"exited with code {code}" if code >= 0 else f"died of signal {-code}"

    def terminate(self) -> None:
        """Ask the process to end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float) -> None:
        """Wait for the end, and force it after `timeout` seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

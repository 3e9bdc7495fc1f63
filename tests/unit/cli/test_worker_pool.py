"""Frontends that die are replaced, and a server whose frontends cannot live ends."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from engine.test_process import make_config
from pagemill.api.admission import Admission
from pagemill.cli.workers import process
from pagemill.cli.workers.control import Question, ask, serve_control
from pagemill.cli.workers.launch import WorkerLaunch
from pagemill.cli.workers.pool import MAX_QUICK_DEATHS, WorkerPool
from pagemill.config.args import ServeArgs
from pagemill.engine.channel import EngineAddress
from pagemill.errors import EngineDeadError, OverloadedError
from pagemill.frontend.board import SharedBoard
from pagemill.metrics.merge import Count, Family


class FakeProcess:
    """Runs until it is told how it ended."""

    def __init__(self, launch: WorkerLaunch, listener: socket.socket) -> None:
        self.launch = launch
        self.cause: str | None = None

    def exit_cause(self) -> str | None:
        return self.cause

    def terminate(self) -> None:
        self.cause = "was told to end"

    def wait(self, timeout: float) -> None:
        assert self.cause is not None


class Setup:
    """A pool of two over fake processes."""

    def __init__(self, folder: Path) -> None:
        self.started: list[FakeProcess] = []
        self.deaths: list[int] = []
        self.board = SharedBoard(folder / "board", 0, 3, ("-",))
        launch = WorkerLaunch(
            args=ServeArgs(),
            config=make_config(),
            chat_template=None,
            default_params={},
            keys=(),
            address=EngineAddress.in_folder(folder, 3),
            engine_pid=1,
            client_id=0,
            num_frontends=3,
            listener_fd=-1,
            folder=str(folder),
        )
        listeners = [socket.socket(), socket.socket()]
        self.pool = WorkerPool(launch, listeners, self.board, self.deaths.append, self.spawn)

    def spawn(self, launch: WorkerLaunch, listener: socket.socket) -> FakeProcess:
        process = FakeProcess(launch, listener)
        self.started.append(process)
        return process


def test_a_dead_frontend_is_replaced_and_its_requests_aborted(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    assert [p.launch.client_id for p in setup.started] == [1, 2]
    SharedBoard(tmp_path / "board", 2, 3, ("-",)).set_choices(4)
    assert setup.board.choices_elsewhere() == 4
    setup.started[1].cause = "died of signal 9"
    setup.pool.check()
    setup.pool.check()
    assert setup.deaths == [2]
    assert setup.board.choices_elsewhere() == 0
    assert [p.launch.client_id for p in setup.started] == [1, 2, 2]
    assert setup.started[2].launch.listener_fd == setup.started[1].launch.listener_fd
    setup.pool.stop()
    assert setup.started[2].cause == "was told to end"


def test_all_frontends_drain_at_once_however_busy_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read it, nobody has to answer; so does one that starts in the place of a dead one."""
    plan = SimpleNamespace(config=make_config(), default_params={})
    monkeypatch.setattr(process, "_plan_of", lambda launch: plan)
    setup = Setup(tmp_path)
    busy = process.Worker(setup.started[1].launch)._context.admission
    with busy.admit("-", 1):
        pass
    Admission(setup.board).start_drain()
    with pytest.raises(OverloadedError, match="shutting down"), busy.admit("-", 1):
        pass
    setup.started[0].cause = "died of signal 9"
    setup.pool.check()
    assert process.Worker(setup.started[2].launch)._context.admission.draining


def test_frontends_that_cannot_live_end_the_server(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    for _ in range(MAX_QUICK_DEATHS - 1):
        setup.started[-1].cause = "exited with code 1"
        setup.pool.check()
    setup.started[-1].cause = "exited with code 1"
    with pytest.raises(EngineDeadError, match="cannot be kept running: it exited with code 1"):
        setup.pool.check()


def test_counts_of_the_dead_stay(tmp_path: Path) -> None:
    async def scenario() -> list[float]:
        setup = Setup(tmp_path)
        count = 3.0

        async def answer(question: Question) -> bytes:
            assert question.method == "metrics"
            family = Family("events", "counter", "Events.", [Count("events_total", (), count)])
            return msgspec.msgpack.encode([family])

        server = await serve_control(str(tmp_path / "frontend-1"), answer)
        totals = []
        for _ in range(2):
            parts = await setup.pool.metrics()  # the second frontend does not answer
            totals.append(sum(family.counts[0].value for part in parts for family in part))
            setup.started[-1 if len(setup.started) > 2 else 0].cause = "died"
            setup.pool.check()
            count = 5.0
        server.close()
        return totals

    assert asyncio.run(scenario()) == [3.0, 8.0]


def test_nobody_there_is_no_answer(tmp_path: Path) -> None:
    assert asyncio.run(ask(str(tmp_path / "nobody"), Question("ready"))) is None

"""The engine's loop prepares for what may come when it has been quiet, and only then."""

from __future__ import annotations

from typing import Any

from pagemill.engine.messages import Control, EngineStats, ToEngine
from pagemill.engine.process import HEARTBEAT_SECONDS, QUIET_SECONDS, EngineLoop


class QuietChannel:
    """Nobody writes but the test."""

    num_clients = 1

    def __init__(self) -> None:
        self.inbox: list[ToEngine] = []
        self.waits: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return bool(self.inbox)

    def receive(self, limit: int) -> list[ToEngine]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, client_id: int, message: object) -> None: ...

    def broadcast(self, message: object) -> None: ...


class IdleEngine:
    """Has so many things to prepare, and no work."""

    def __init__(self, left: int) -> None:
        self.left = left

    def has_work(self) -> bool:
        return False

    def use_idle_time(self) -> bool:
        self.left -= 1
        return self.left > 0

    def stats(self) -> EngineStats:
        return EngineStats()

    def control(self, method: str, args: list[Any]) -> Any:
        return None


def make_loop(left: int) -> tuple[EngineLoop, QuietChannel, IdleEngine]:
    channel, engine = QuietChannel(), IdleEngine(left)
    return EngineLoop(engine, channel), channel, engine  # type: ignore[arg-type]


def test_prepares_one_thing_after_the_other_and_then_sleeps() -> None:
    loop, channel, engine = make_loop(3)
    for _ in range(5):
        loop.turn()
    assert engine.left == 0
    assert channel.waits[0] <= 0  # the first heartbeat is due
    assert channel.waits[1:4] == [QUIET_SECONDS] * 3
    assert QUIET_SECONDS < channel.waits[4] <= HEARTBEAT_SECONDS


def test_a_message_comes_first_and_may_bring_more_to_prepare() -> None:
    loop, channel, engine = make_loop(1)
    channel.inbox.append(Control(1, 0, "echo", []))
    loop.turn()
    assert engine.left == 1
    loop.turn()
    assert engine.left == 0
    loop.turn()
    assert engine.left == 0
    channel.inbox.append(Control(1, 0, "wake_up", []))
    loop.turn()
    loop.turn()
    assert engine.left == -1
